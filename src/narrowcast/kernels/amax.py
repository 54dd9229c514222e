"""The largest magnitude of a tensor, or of each of its rows, in one pass; NaN and infinity show in it.

Float bits without their sign are ordered as integers are, NaN above all: an integer maximum is exact whatever the
order, so programs join theirs by atomic maxima.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.kernels.facts import RotationFacts, rotation_of
from narrowcast.kernels.launch import Matrix, amax_layout, items_of
from narrowcast.kernels.tile import largest, load_group, place, values_of
from narrowcast.quantize import Cast

WARPS = 8


@triton.jit(do_not_specialize=("rows", "padded_rows"))
def amax_kernel(
    x_ptr, amax_ptr, flips_ptr, rows, cols, padded_rows, padded_cols, H: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """Join the largest magnitude of one program's groups into ``amax_ptr``, float32 bits as int32."""
    base, at, left, element, _codes, _at, _tile, _leader, _inside = place(
        rows, cols, padded_rows, padded_cols, 1, 0, 8, L
    )
    raw = load_group(x_ptr + base // L.per_item, flips_ptr, at, left, element, H, L, L.group // L.vector)
    values = values_of(raw, H, L, True)
    top = tl.max(largest(values, 0, L.group), axis=0)
    row = 0
    if L.given == "row":
        row = tl.program_id(0)
    tl.atomic_max(amax_ptr + row, top, sem="relaxed")


def amax(x: Tensor, cast: Cast, padded: tuple[int, ...], flips: Tensor | None, by_row: bool) -> Tensor:
    """Return the largest magnitudes of ``x`` (contiguous, not empty) after the cast's transform.

    float32 ``[1]``, or ``[M]`` for each row of ``x`` as a matrix.
    """
    matrix = Matrix.of(tuple(x.shape), padded)
    made, grid = amax_layout(cast, matrix, x, by_row)
    found = torch.zeros(matrix.rows if by_row else 1, dtype=torch.int32, device=x.device)
    facts: RotationFacts = rotation_of(cast.transform)
    sizes = (matrix.rows, matrix.cols, matrix.padded_rows, matrix.padded_cols)
    items = (items_of(x, made.pairs), found, items_of(flips, made.pairs))
    amax_kernel[grid](*items, *sizes, H=facts, L=made, num_warps=WARPS, enable_fp_fusion=False)
    return found.view(torch.float32)
