"""The heavy operations, written plainly: this is the emulation, and so the definition.

Legend: ``M`` tokens (rows of x), ``N`` output features, ``K`` the contraction axis of the gemm at hand, always last:
``a [M, K]``, ``b [N, K]``, ``a @ b.T``. So every scale tile and every Hadamard block runs along K.
"""

from dataclasses import dataclass
from math import lcm

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.accumulate import FP32, TIMES, Accumulator, Codes, Operand, Product, codes_of
from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer, Stream, unpack
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of
from narrowcast.transforms import Hadamard

WIDE = Cast(cast_of("float32").format)  # the cast that changes nothing


@dataclass(frozen=True)
class Reuse:
    """An operand made from the codes that an earlier gemm made of the same tensor, not from the wide source.

    x and w are first cast by the forward gemm, g by dgrad. Reusing them is what lets a layer keep codes instead of
    the wide tensor for the backward pass. With ``then``, the decoded values are cast once more along the new
    contraction axis (DeepSeek-V3 re-quantizes 1x128 tiles to 128x1 so).
    """

    then: Cast | None = None

    def __str__(self) -> str:
        return f"reuse/{self.then}" if self.then else "reuse"


REUSE = Reuse()


@dataclass(frozen=True)
class Gemm:
    """A product of two casts: ``a [M, K] @ b [N, K].T``.

    Attributes:
        a, b: how each operand is narrowed, from the wide source or by `Reuse`.
        transform: change of basis on the contraction axis of both operands; it cancels in the product.
        out: format that the product is rounded to, or None for float32.
        accumulator: how products are summed along K.
        product: what multiplies.
    """

    a: Cast | Reuse
    b: Cast | Reuse
    transform: Hadamard | None = None
    out: Format | None = None
    accumulator: Accumulator = FP32
    product: Product = TIMES

    def __post_init__(self) -> None:
        self.accumulator.accept(self.product)
        if self.transform and (isinstance(self.a, Reuse) or isinstance(self.b, Reuse)):
            raise InputError("a gemm with a shared transform needs both operands from their wide sources, not reused")

    @property
    def casts(self) -> tuple[Cast, Cast]:
        """The casts applied at this gemm; a plain `Reuse` applies none."""
        return _applied(self.a), _applied(self.b)

    @property
    def random(self) -> bool:
        """Whether this gemm draws random bits."""
        return any(c.random for c in self.casts) or (self.transform is not None and self.transform.signs == "fresh")


def _applied(operand: Cast | Reuse) -> Cast:
    return (operand.then or WIDE) if isinstance(operand, Reuse) else operand


def contraction_source(gemm: Gemm, x: Tensor, stream: Stream | None, what: str) -> Tensor:
    """Return operand ``x [., K]`` ready for its cast: padded along K where the casts allow it, and rotated.

    Both operands of a gemm are padded to the same K (zeros add nothing to the product).
    """
    short = contraction_length(gemm, tuple(x.shape), what) - x.shape[-1]
    x = F.pad(x, (0, short)) if short else x
    return gemm.transform.forward(x, stream) if gemm.transform else x


def contraction_length(gemm: Gemm, shape: tuple[int, ...], what: str) -> int:
    """Return the length to which both operands of ``gemm`` are padded along K; InputError where they may not be."""
    a, b = gemm.casts
    multiple = lcm(a.padding_multiple(), b.padding_multiple(), gemm.transform.size if gemm.transform else 1)
    short = -shape[-1] % multiple
    if short and not (a.tile.pad or b.tile.pad):
        raise InputError(
            f"{what} of shape {shape}: the contraction axis is not a multiple of {multiple}, which "
            f"{a} and {b} need; change the layer's or batch's size, or use tiles with '+pad'"
        )
    return shape[-1] + short


def matmul(a: Operand, b: Operand, gemm: Gemm, alpha: float = 1.0) -> Tensor:
    """Multiply prepared operands ``a [..., M, K]`` and ``b [..., N, K]`` and round the sums once, to ``out``.

    Float32 (float64 stays float64 where nothing is narrow). Operands are tensors, or `Codes` where the accumulator
    works on codes; a tensor then stands for codes without scales. ``alpha`` multiplies the sums.
    """
    total = gemm.accumulator.matmul(a, b, gemm.product)
    if alpha != 1.0:
        total = total * alpha
    if gemm.out is not None:
        return gemm.out.round(total)
    dtype = codes_of(a).values.dtype
    return total if total.dtype == dtype else total.to(dtype)  # no second name for one tensor: `nn.context.in_dtype`


def operand(q: QTensor) -> QTensor:
    """Return the same codes as a matrix of its own, as products take it: with axis -1.

    By its fields and not by `dataclasses.replace`, whose loop over them a compiler follows for 12 ms a call.
    """
    if q.axis == -1:
        return q
    return QTensor(q.codes, q.scales, q.tensor_scale, q.cast, q.shape, q.padded, q.dtype, q.stream)


def split(q: QTensor) -> Codes:
    """Return codes and scales of a matrix apart, as `Cast.split` of its source does, without what padding added."""
    fmt = q.cast.format
    values = fmt.decode(unpack(q.codes, fmt.bits, q.padded[-1])).view(q.padded)
    step = fmt.smallest if isinstance(fmt, Integer) else 1.0
    scale, numbers = torch.where(values < 0, -step, step), q.cast.scale.numbers
    blocks, _ = q.cast.tile.blocks(scale)
    for factor in q.cast.scale.restore(q.scales, q.tensor_scale):
        numbers.leave(blocks, numbers.apart(factor))
    rows, cols = q.shape
    return Codes(values[:rows, :cols] / step, scale[:rows, :cols].abs(), fmt.smallest_normal / step)


def multiply(a: Tensor, b: Tensor, gemm: Gemm, what: str = "gemm") -> Tensor:
    """Narrow ``a [..., M, K]`` and ``b [..., N, K]`` from their wide sources and multiply them: one gemm, whole.

    Raises InputError for a gemm that draws random bits or reuses codes: only a layer has what those need.
    """
    if gemm.random or isinstance(gemm.a, Reuse) or isinstance(gemm.b, Reuse):
        raise InputError(f"{what}: a gemm by itself draws no random bits and reuses no codes; use a linear layer")
    operands: list[Operand] = []
    for x, cast, side in ((a, gemm.a, "a"), (b, gemm.b, "b")):
        source = contraction_source(gemm, x, None, f"{what}, operand {side}")
        operands.append(cast.split(source) if gemm.accumulator.on_codes else cast.apply(source))
    return matmul(operands[0], operands[1], gemm)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Gemm,
    values: Gemm,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return ``softmax(scale q k^T + mask) v`` with its two products as gemms, softmax in float32. No gradient.

    Args:
        q: ``[..., T, D]``.
        k, v: ``[..., S, D]``.
        scores: the gemm of q and k, along D.
        values: the gemm of the softmax's rows and v, along S.
        mask: added to the scores, broadcast against ``[..., T, S]``.
        scale: 1 / sqrt(D) where None.
    """
    logits = multiply(q, k, scores, "attention scores").mul_(q.shape[-1] ** -0.5 if scale is None else scale)
    shares = (logits if mask is None else logits + mask).softmax(-1)
    return multiply(shares, v.mT, values, "attention values")
