"""Both orientations of a matrix's codes: the plain definition.

A training step contracts every tensor along both of its axes: activations ``x [M, K]`` along K going forward, along M
for the weight's gradient. Tensor cores of Hopper take FP8 operands with the contraction axis last in memory, so both
``x`` and its transpose are cast.
"""

from dataclasses import replace
from typing import TypedDict

from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Stream
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import Tile

Two = tuple[QTensor, QTensor]


class How(TypedDict, total=False):
    """The arguments of `quantize_both` that everything fused with it takes too."""

    stream: Stream | None
    across_stream: Stream | None
    history: Tensor | None
    what: str
    after: Tensor | None
    like: Tensor | None


def quantize_both(
    x: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    stream: Stream | None = None,
    across_stream: Stream | None = None,
    history: Tensor | None = None,
    what: str = "tensor",
    after: Tensor | None = None,
    like: Tensor | None = None,
) -> Two:
    """Return ``x`` by ``cast``, tiles along its last axis, and its transpose by ``across``, tiles along its rows.

    Args:
        x: ``[..., K]``, seen as a matrix ``[M, K]``.
        cast: of ``x``; codes ``[M, K]``.
        across: of the transpose; codes ``[K, M]``, as ``nc.quantize(x, across, axis=0)`` makes them. None for the same
            codes turned, which one scale a tensor, squares and unscaled casts allow: nothing is rounded twice, also
            under random rounding.
        stream, across_stream: of random bits, where the casts draw any.
        history: of a delayed scale (`Delayed.new`), updated in place.
        what: name for error messages.
        after, like: of use to kernels in compiled code (`passes.later`), where maxima come first: what must be there
            before codes are made of them; ``x`` itself, not tied to anything, whose maxima are known already.

    Returns:
        Two `QTensor`; the second has axis 0.

    Raises InputError where codes cannot be turned, and as `Cast.quantize` does.
    """
    matrix = x.reshape(-1, x.shape[-1])
    first = cast.quantize(matrix, stream, history, what)
    if across is None:
        return first, turned(first)
    return first, replace(across.quantize(matrix.mT, across_stream, history, f"{what}, transposed,"), axis=0)


def turned(q: QTensor) -> QTensor:
    """Return the transpose of a matrix's codes, without rounding anything again."""
    tile = q.cast.tile
    if tile.rows == 1 or q.cast.transform is not None:
        raise InputError(
            f"cast {q.cast}: its scales (or blocks) run along one axis, so its codes cannot be turned; name a cast for "
            "the transpose"
        )
    if q.cast.format.bits != 8:
        raise InputError(f"cast {q.cast}: only codes of 8 bits are turned here")
    other = replace(q.cast, tile=Tile(tile.cols, tile.rows, tile.pad))
    scales = q.scales.permute(2, 3, 0, 1) if q.scales.dim() == 4 else q.scales
    shape, padded = (q.shape[1], q.shape[0]), (q.padded[1], q.padded[0])
    return QTensor(q.codes.mT.contiguous(), scales, q.tensor_scale, other, shape, padded, q.dtype, q.stream, axis=0)
