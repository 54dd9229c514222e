"""How fast a quantized model would be served on a GPU that is not here: the roofline of `roofline`, forward only.

- *prefill*: all tokens of a prompt at once, one gemm a matrix;
- *decode*: one token for each sequence, where reading the weights is what takes the time.

Weights are read as they are stored, scales counted. Where the GPU multiplies both operands as they are (FP8, INT8), the
gemm runs at that rate; weights whose inputs stay wide are decoded in registers and multiplied as bfloat16; where the
GPU has no unit for the operands (4-bit floats on Hopper) both are decoded and multiplied as bfloat16. Attention, norms,
sampling and the KV cache are left out: they are the same for all. Predictions are lower bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from narrowcast.analysis.roofline import H100, Gpu, operand_unit
from narrowcast.errors import InputError, nearest
from narrowcast.quantize import Cast

_H200_SHEET = "NVIDIA H200 Tensor Core GPU data sheet, SXM, HBM3e"
H200 = Gpu(
    "NVIDIA H200 SXM 141 GB",
    tuple(replace(c, value=4.8e12, source=_H200_SHEET) if c.name == "bandwidth" else c for c in H100.constants),
)
GPUS = {"h100": H100, "h200": H200}
_WIDE_BYTES = 2.0
_NAMES = {
    "fp8": "FP8 gemm",
    "int8": "INT8 gemm",
    "decoded": "16-bit gemm on weights decoded in registers",
    "bf16": "16-bit gemm, both operands decoded before",
    "wide": "16-bit gemm",
}


@dataclass(frozen=True)
class Product:
    """A matrix that every token meets: ``count`` of ``[n, k]``.

    Attributes:
        n, k: of the matrix.
        nbytes: of all ``count`` of them as stored.
        kind: what multiplies it, a key of the kernels' names.
        count: how many of them; ``active`` of them meet each token (the chosen experts of a mixture).
        cast_bits: bits per element of the narrowed input, None where it stays wide.
    """

    n: int
    k: int
    nbytes: float
    kind: str
    count: int = 1
    active: int = 1
    cast_bits: float | None = None


@dataclass(frozen=True)
class Speed:
    """Predicted times.

    Attributes:
        prefill: seconds for ``prompt`` tokens.
        decode: seconds for one token of each of ``batch`` sequences.
        prompt, batch: what was asked.
    """

    prefill: float
    decode: float
    prompt: int
    batch: int

    @property
    def prefill_rate(self) -> float:
        """Tokens per second while the prompt is read."""
        return self.prompt / self.prefill

    @property
    def decode_rate(self) -> float:
        """Tokens per second while writing."""
        return self.batch / self.decode


def gpu(name: str) -> Gpu:
    """Return the GPU called ``name``; InputError with the nearest names."""
    if name not in GPUS:
        raise InputError(f"unknown GPU {name!r}{nearest(name, GPUS)}")
    return GPUS[name]


def kind_of(weight: Cast, activation: Cast | None) -> str:
    """Return what a Hopper GPU multiplies such operands with; ``activation`` None is a wide input."""
    if activation is None:
        return "decoded"
    units = {operand_unit(weight), operand_unit(activation)}
    return units.pop() if units in ({"fp8"}, {"int8"}) else "bf16"


def kernel(kind: str) -> str:
    """Return a kind of gemm in words."""
    return _NAMES[kind]


def narrow_product(
    shape: tuple[int, int], nbytes: int, weight: Cast, activation: Cast | None, count: int = 1, active: int = 1
) -> Product:
    """Return the work of ``count`` narrow matrices that take ``nbytes``; ``active`` of them meet each token."""
    bits = activation.bits_per_element((1, shape[1])) if activation else None
    return Product(*shape, nbytes, kind_of(weight, activation), count, active, bits)


def wide_product(shape: tuple[int, int], count: int = 1, active: int = 1) -> Product:
    """Return the work of matrices that stay in 16 bits."""
    return Product(*shape, _WIDE_BYTES * count * shape[0] * shape[1], "wide", count, active)


def served(products: Sequence[Product], on: Gpu = H100, prompt: int = 2048, batch: int = 1) -> Speed:
    """Return the predicted times of a model that multiplies by ``products``."""
    prefill = sum(_seconds(p, prompt, on) for p in products)
    return Speed(prefill, sum(_seconds(p, batch, on) for p in products), prompt, batch)


def _seconds(p: Product, tokens: int, on: Gpu) -> float:
    """Return the time of one layer: its gemms, and the cast of its input where that is narrowed."""
    touched = min(p.count, p.active * tokens)  # experts that some token meets, at most
    rate = on[p.kind if p.kind in ("fp8", "int8") else "bf16"]
    operations = 2.0 * tokens * p.active * p.n * p.k
    inputs = tokens * p.active * p.k
    moved = p.nbytes * touched / p.count + tokens * p.active * p.n * _WIDE_BYTES
    narrow = p.cast_bits is not None
    as_read = (p.cast_bits or 0) / 8 if p.kind in ("fp8", "int8") else _WIDE_BYTES
    cast = inputs * (_WIDE_BYTES + as_read) / on["bandwidth"] + on["launch"] if narrow else 0.0
    if p.kind == "bf16":  # decoded by a kernel of its own: written and read again in 16 bits
        moved += 2 * _WIDE_BYTES * touched * p.n * p.k
    return max(operations / rate, (moved + inputs * as_read) / on["bandwidth"]) + on["launch"] + cast
