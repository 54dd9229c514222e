"""How long a training step would take on a GPU that is not here: a roofline.

A kernel takes as long as its arithmetic at the peak rate or its bytes at the peak bandwidth, whichever is more, plus
its launch. No kernel reaches these peaks, so a prediction is a *lower bound*; ratios between recipes are what it is
good for. Conventions:

- each linear layer is three gemms of 2 M N K operations; an operand is read once, the product written once;
- each cast reads a bfloat16 source and writes codes and scales; a scale for a whole tensor costs one more pass over
  the source (its maximum), unless it is delayed; casts are fused neither with their neighbours nor with each other;
  16-bit casts and reused codes cost nothing;
- where the GPU has no unit for the operands (MX blocks, 4-bit), the cast writes bfloat16 values and a bfloat16 gemm
  multiplies them: there such a recipe cannot be faster than bf16;
- attention, norms and elementwise work are left out: they are the same in all recipes. What the optimizer moves is the
  caller's ``other_bytes``.

Source of the model: Williams, Waterman & Patterson 2009, "Roofline".
"""

from dataclasses import dataclass

from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.quantize import Cast
from narrowcast.scaling import TwoLevel

_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, SXM5, dense (half the sparse figure)"
_WIDE_BYTES = 2.0  # a wide activation, weight or gradient on the GPU is bfloat16
_FLOAT32_BYTES = 4.0
_GEMMS = ("fwd", "dgrad", "wgrad")


@dataclass(frozen=True)
class Constant:
    """A number with its unit and source."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs of a GPU: peak rates by gemm kind, ``bandwidth`` in B/s, ``launch`` in seconds."""

    name: str
    constants: tuple[Constant, ...]

    def __getitem__(self, name: str) -> float:
        return next(c.value for c in self.constants if c.name == name)


H100 = Gpu(
    "NVIDIA H100 SXM5 80 GB",
    (
        Constant("fp8", 1979e12, "FLOP/s", _SHEET),
        Constant("int8", 1979e12, "OP/s", _SHEET),
        Constant("bf16", 989.5e12, "FLOP/s", _SHEET),
        Constant("tf32", 494.7e12, "FLOP/s", f"{_SHEET}; unused: torch computes float32 in full by default"),
        Constant("fp32", 66.9e12, "FLOP/s", "NVIDIA H100 Tensor Core GPU Architecture white paper, SXM5"),
        Constant("bandwidth", 3.35e12, "B/s", f"{_SHEET}, HBM3"),
        Constant("launch", 3e-6, "s", "assumption of this library: overhead of one kernel launch"),
    ),
)


@dataclass(frozen=True)
class Layer:
    """A linear layer, ``count`` times in the model."""

    out: int
    inputs: int
    count: int = 1

    def shape(self, label: str, tokens: int) -> tuple[int, int]:
        """Return ``[rows, contraction]`` of operand ``label``."""
        return {
            "fwd.x": (tokens, self.inputs),
            "fwd.w": (self.out, self.inputs),
            "dgrad.g": (tokens, self.out),
            "dgrad.w": (self.inputs, self.out),
            "wgrad.g": (self.out, tokens),
            "wgrad.x": (self.inputs, tokens),
        }[label]


@dataclass(frozen=True)
class Work:
    """The linear layers of a model and the tokens of one step; ``wide`` layers (the head) are not narrowed."""

    name: str
    layers: tuple[Layer, ...]
    tokens: int
    wide: tuple[Layer, ...] = ()


#: four layers of Llama-3-8B (Grattafiori et al. 2024, table 3): q and o, k and v, gate and up, down
LLAMA_8B = Work(
    "four Llama-8B layers, 4 x 4096 tokens",
    (Layer(4096, 4096, 8), Layer(1024, 4096, 8), Layer(14336, 4096, 8), Layer(4096, 14336, 4)),
    4 * 4096,
)


@dataclass(frozen=True)
class Prediction:
    """One predicted training step: its parts in seconds, and a line on what kind of gemm ran."""

    gemms: float
    casts: float
    other: float
    launches: float
    note: str

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.gemms + self.casts + self.other + self.launches


def predict(spec: LinearSpec | None, work: Work, *, other_bytes: float = 0.0, gpu: Gpu = H100) -> Prediction:
    """Return the predicted time of forward and backward of the linear layers in ``work``.

    Args:
        spec: the gemms of ``work.layers``; None means float32. ``work.wide`` runs in bfloat16, or float32 too.
        work: layers and tokens.
        other_bytes: further traffic of a step, e.g. the optimizer's.
        gpu: the constants.
    """
    kinds = {gemm: gemm_kind(spec, gemm) for gemm in _GEMMS}
    wide = dict.fromkeys(_GEMMS, "fp32" if spec is None else "bf16")
    gemms = moved = 0.0
    launches = 0
    for layer in work.layers:
        cast_bytes, kernels = _casts(spec, kinds, layer, work.tokens) if spec else (0.0, 0)
        gemms += layer.count * sum(_gemm_seconds(spec, gemm, kinds[gemm], layer, work.tokens, gpu) for gemm in _GEMMS)
        moved += layer.count * cast_bytes
        launches += layer.count * (len(_GEMMS) + kernels)
    for layer in work.wide:
        gemms += layer.count * sum(_gemm_seconds(None, gemm, wide[gemm], layer, work.tokens, gpu) for gemm in _GEMMS)
        launches += layer.count * len(_GEMMS)
    bandwidth = gpu["bandwidth"]
    return Prediction(gemms, moved / bandwidth, other_bytes / bandwidth, launches * gpu["launch"], _note(spec, kinds))


def operand_unit(cast: Cast) -> str:
    """Return which unit of a Hopper GPU multiplies such operands (fp8, int8, bf16, fp32), ``none`` where none does.

    FP8 units take 8-bit floats under scales that can be put back outside the product, widened to float32 on loading:
    tensor, row, blocks of 128, but not two levels of them. INT8 units take int8, whose 32x32 scales are applied between
    partial sums (Jetfire).
    """
    name, tile = cast.format.name, cast.tile
    if cast.is_identity:
        return "fp32"
    if name in ("bfloat16", "float16") and cast.scale.bits == 0:
        return "bf16"
    if name == "int8":
        return "int8"
    coarse = tile.is_tensor or tile.cols == 0 or tile.cols % 128 == 0
    return "fp8" if name in ("e4m3fn", "e5m2") and coarse and not isinstance(cast.scale, TwoLevel) else "none"


def gemm_kind(spec: LinearSpec | None, gemm: str) -> str:
    """Return what runs gemm ``fwd``, ``dgrad`` or ``wgrad``: its operands' unit where they share one, else bf16."""
    if spec is None:
        return "fp32"
    units = {operand_unit(spec.cast(label)) for label in OPERANDS if label.startswith(f"{gemm}.")}
    if "fp32" in units:
        return "fp32"
    return units.pop() if len(units) == 1 and "none" not in units else "bf16"


def _element_bytes(spec: LinearSpec | None, kind: str, label: str, shape: tuple[int, int]) -> float:
    """Return bytes per element of an operand as its cast writes it and its gemm reads it."""
    if spec is not None and kind in ("fp8", "int8"):
        return spec.cast(label).bits_per_element(shape) / 8
    return _FLOAT32_BYTES if kind == "fp32" else _WIDE_BYTES


def _gemm_seconds(spec: LinearSpec | None, gemm: str, kind: str, layer: Layer, tokens: int, gpu: Gpu) -> float:
    moved = 0.0
    for label in OPERANDS:
        if label.startswith(f"{gemm}."):
            rows, depth = layer.shape(label, tokens)
            moved += rows * depth * _element_bytes(spec, kind, label, (rows, depth))
    m, n, k = tokens, layer.out, layer.inputs
    product = {"fwd": m * n, "dgrad": m * k, "wgrad": n * k}[gemm]
    narrow = kind != "fp32" and gemm != "wgrad"  # weight gradients stay float32
    moved += product * (_WIDE_BYTES if narrow else _FLOAT32_BYTES)
    return max(2.0 * m * n * k / gpu[kind], moved / gpu["bandwidth"])


def _casts(spec: LinearSpec, kinds: dict[str, str], layer: Layer, tokens: int) -> tuple[float, int]:
    """Return (bytes moved, kernels launched) by the casts of one layer."""
    moved, kernels = 0.0, 0
    for label in OPERANDS:
        operand, cast = spec.operand(label), spec.cast(label)
        if operand_unit(cast) in ("bf16", "fp32") or (isinstance(operand, Reuse) and operand.then is None):
            continue
        shape = layer.shape(label, tokens)
        whole = cast.tile.is_tensor or cast.scale.tensor_bits > 0
        passes = 2 if whole and cast.scale.needs_amax and cast.scale.delayed is None else 1
        written = _element_bytes(spec, kinds[label.split(".")[0]], label, shape)
        moved += shape[0] * shape[1] * (passes * _WIDE_BYTES + written)
        kernels += passes
    return moved, kernels


def _note(spec: LinearSpec | None, kinds: dict[str, str]) -> str:
    """Return one line on what kind of gemm ran."""
    names = {"fp8": "FP8", "int8": "INT8", "bf16": "16-bit", "fp32": "FP32 (no tensor core)"}
    ran = {names[kind] for kind in kinds.values()}
    each = ", ".join(f"{gemm} {names[kind]}" for gemm, kind in kinds.items())
    text = f"{ran.pop()} gemms" if len(ran) == 1 else f"{each} gemms"
    casts = [spec.cast(label) for label in OPERANDS] if spec else []
    homeless = sorted({f"{c.format}/{c.tile}" for c in casts if operand_unit(c) == "none"})
    if homeless:
        text += f": no unit for {', '.join(homeless).replace('+pad', '')}, decoded to bfloat16"
    return text
