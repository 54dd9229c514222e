"""Predicted step time on a GPU: each gemm and each cast takes the longer of its arithmetic and its traffic.

A prediction, not a measurement: no kernel reaches both peaks, so real times are longer. Ratios between recipes are
what it is good for. Constants are named, with their sources.
"""

from dataclasses import dataclass

from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm, Reuse
from narrowcast.quantize import Cast

_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, SXM5, dense"


@dataclass(frozen=True)
class Constant:
    """A number with its unit and source."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs to know of a GPU: peak rates in FLOP/s by operand kind, bandwidth in B/s, launch in s."""

    name: str
    constants: tuple[Constant, ...]

    def __getitem__(self, name: str) -> float:
        return next(c.value for c in self.constants if c.name == name)


H100 = Gpu(
    "NVIDIA H100 SXM5 80 GB",
    (
        Constant("fp8", 1979e12, "FLOP/s", _SHEET),
        Constant("int8", 1979e12, "OP/s", _SHEET),
        Constant("bf16", 989.4e12, "FLOP/s", _SHEET),
        Constant("tf32", 494.7e12, "FLOP/s", _SHEET),
        Constant("fp32", 66.9e12, "FLOP/s", _SHEET),
        Constant("bandwidth", 3.35e12, "B/s", _SHEET),
        Constant("launch", 3e-6, "s", "assumed: a kernel's launch and tail in a captured graph"),
    ),
)


@dataclass(frozen=True)
class Layer:
    """A linear layer, ``count`` times in the model."""

    out: int
    inputs: int
    count: int = 1


@dataclass(frozen=True)
class Work:
    """The linear layers of a model and the tokens of one step; ``wide`` layers (the head) stay in bfloat16."""

    name: str
    layers: tuple[Layer, ...]
    tokens: int
    wide: tuple[Layer, ...] = ()


#: four layers of Llama-3-8B at 4 x 4096 tokens: q, k, v, o, gate, up, down
LLAMA_8B = Work(
    "four Llama-8B layers, 4 x 4096 tokens",
    (Layer(4096, 4096, 8), Layer(1024, 4096, 8), Layer(14336, 4096, 8), Layer(4096, 14336, 4)),
    16384,
)


def engine(gemm: Gemm, first: Cast, second: Cast) -> str:
    """Return which H100 unit runs the product: fp8, int8, bf16 or fp32.

    FP8 units take 8-bit floats under scales that can be put back outside the product (tensor, row, 128-blocks).
    Block-of-32 and 4-bit operands have no unit there: they are decoded and multiplied in bfloat16.
    """
    kinds = set()
    for cast in (first, second):
        name, tile = cast.format.name, cast.tile
        coarse = tile.is_tensor or tile.cols == 0 or tile.cols >= 128
        if cast.is_identity:
            kinds.add("fp32")
        elif name.startswith("e") and cast.format.bits == 8 and coarse:
            kinds.add("fp8")
        else:
            kinds.add("int8" if name == "int8" else "bf16")
    for kind in ("fp32", "bf16"):
        if kind in kinds:
            return kind
    return kinds.pop() if len(kinds) == 1 else "bf16"


def predict(spec: LinearSpec | None, work: Work, gpu: Gpu = H100) -> tuple[float, str]:
    """Return (seconds of one training step's linear layers, how the gemms run) for ``spec`` on ``work``."""
    seconds = 0.0
    engines: list[str] = []
    for layer in work.layers:
        time, used = _layer(spec, layer, work.tokens, gpu)
        seconds += time * layer.count
        engines = used
    for layer in work.wide:
        time, _ = _layer(None, layer, work.tokens, gpu, wide="fp32" if spec is None else "bf16")
        seconds += time * layer.count
    return seconds, "gemms run as " + ", ".join(
        f"{n} {e}" for n, e in zip(("fwd", "dgrad", "wgrad"), engines, strict=True)
    )


def _layer(spec: LinearSpec | None, layer: Layer, tokens: int, gpu: Gpu, wide: str = "fp32") -> tuple[float, list[str]]:
    """Return (seconds, engine of each gemm) for one layer's three gemms and their casts."""
    m, n, k = tokens, layer.out, layer.inputs
    sizes = {"fwd": (m, n, k), "dgrad": (m, k, n), "wgrad": (n, k, m)}
    seconds, engines = 0.0, []
    for name, (rows, cols, depth) in sizes.items():
        if spec is None:
            unit, bits = wide, {"fp32": 32.0, "bf16": 16.0}[wide]
            a_bits = b_bits = bits
        else:
            gemm: Gemm = getattr(spec, name)
            labels = {"fwd": ("fwd.x", "fwd.w"), "dgrad": ("dgrad.g", "dgrad.w"), "wgrad": ("wgrad.g", "wgrad.x")}[name]
            a, b = (spec.cast(label) for label in labels)
            unit = engine(gemm, a, b)
            a_bits, b_bits = a.bits_per_element((rows, depth)), b.bits_per_element((cols, depth))
            for operand, cast, shape in ((gemm.a, a, (rows, depth)), (gemm.b, b, (cols, depth))):
                seconds += _cast(operand, cast, shape, gpu)
        traffic = (rows * depth * a_bits + cols * depth * b_bits + rows * cols * 16) / 8
        seconds += max(2 * rows * cols * depth / gpu[unit], traffic / gpu["bandwidth"]) + gpu["launch"]
        engines.append(unit)
    return seconds, engines


def _cast(operand: Cast | Reuse, cast: Cast, shape: tuple[int, int], gpu: Gpu) -> float:
    """Return the seconds of one cast: read bfloat16 (twice where a whole-tensor or row maximum comes first), write."""
    if isinstance(operand, Reuse) or cast.scale.bits + cast.scale.tensor_bits == 0:
        return 0.0  # reused codes, or 16-bit casts fused into the producer
    passes = 2 if cast.tile.cols == 0 or cast.scale.tensor_bits else 1
    size = shape[0] * shape[1] * (16 * passes + cast.bits_per_element(shape)) / 8
    return size / gpu["bandwidth"] + passes * gpu["launch"]
