"""Kernels that need whole rows: 1 / rms (with a residual added first), Smooth-SwiGLU's scales, the gradient of a norm.

Sums are pairwise, neighbours first, as `passes.pairwise_sum`: a tree that does not depend on how threads share a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.kernels.launch import power_of_two
from narrowcast.kernels.produce import bits_as, rounded, wide
from narrowcast.kernels.rounding import bits_of, float_of
from narrowcast.kernels.scale import reciprocal
from narrowcast.names import dtype_name
from narrowcast.passes.wide import ROWS

_INF = tl.constexpr(0x7F800000)
MAX_ROW = 1 << 15  # elements of a row that one program holds
CHUNK = 1 << 12  # elements of a row at a time, where a loop will do
STAGES = 2  # rows under way at a time, where several follow one another
JOINED = 512  # partial sums that one program joins


@triton.jit
def pairwise(x, LEVELS: tl.constexpr):
    """Return the sum of ``x`` [2**LEVELS] as a scalar."""
    for _ in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, [x.shape[0] // 2, 2]), axis=1)
    return tl.sum(x, axis=0)


@triton.jit
def row_of(ptr, row, stride, cols, BLOCK: tl.constexpr, SOURCE: tl.constexpr):
    """Return one row as float32 [BLOCK], zero beyond ``cols`` columns."""
    column = tl.arange(0, BLOCK)
    return wide(tl.load(ptr + row.to(tl.int64) * stride + column, mask=column < cols, other=0), SOURCE)


@triton.jit
def inverse_rms(x, cols, eps, LEVELS: tl.constexpr):
    """Return 1 / sqrt(mean(x**2) + eps), in the order of `passes.rms`."""
    mean = tl.div_rn(pairwise(x * x, LEVELS), cols.to(tl.float32))
    return reciprocal(tl.sqrt_rn(mean + eps))


@triton.jit
def rms_kernel(x_ptr, delta_ptr, total_ptr, inverse_ptr, x_stride, delta_stride, cols, eps, BLOCK: tl.constexpr,
               LEVELS: tl.constexpr, SOURCE: tl.constexpr):  # fmt: skip
    """1 / rms of one row; of x + delta, which is stored, where there is a delta."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = row_of(x_ptr, row, x_stride, cols, BLOCK, SOURCE)
    if delta_ptr is not None:
        x = rounded(x + row_of(delta_ptr, row, delta_stride, cols, BLOCK, SOURCE), SOURCE)
        tl.store(total_ptr + row.to(tl.int64) * cols + column, bits_as(x, SOURCE), mask=column < cols)
    tl.store(inverse_ptr + row, inverse_rms(x, cols, eps, LEVELS))


def inverse_rms_of(x: Tensor, delta: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x + delta, or nothing without a delta; 1 / rms of it, float32 ``[M, 1]``)."""
    rows, cols = x.shape
    total = torch.empty((rows, cols) if delta is not None else 0, dtype=x.dtype, device=x.device)
    inverse = torch.empty(rows, 1, device=x.device)
    size = power_of_two(cols)
    rms_kernel[(rows,)](
        _bits(x),
        None if delta is None else _bits(delta),
        _bits(total),
        inverse,
        x.stride(0),
        0 if delta is None else delta.stride(0),
        cols,
        eps,
        BLOCK=size,
        LEVELS=size.bit_length() - 1,
        SOURCE=dtype_name(x.dtype),
        num_warps=_warps(size),
        enable_fp_fusion=False,
    )
    return total, inverse


@triton.jit
def smooth_kernel(up_ptr, scale_ptr, stride, cols, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, SOURCE: tl.constexpr):
    """The power of two of one row, as `passes.smooth_scale`."""
    row = tl.program_id(0)
    top = tl.zeros([BLOCK], tl.int32)
    for i in range(CHUNKS):
        x = row_of(up_ptr + i * BLOCK, row, stride, cols - i * BLOCK, BLOCK, SOURCE)
        top = tl.maximum(top, bits_of(x) & 0x7FFFFFFF)
    bits = tl.max(top, axis=0)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    exponent = tl.where((bits == 0) | (bits >= _INF), 127, exponent)
    tl.store(scale_ptr + row, float_of(exponent << 23))


def smooth_scale_of(up: Tensor) -> Tensor:
    """Return Smooth-SwiGLU's scales, float32 ``[M, 1]``."""
    rows, cols = up.shape
    scale = torch.empty(rows, 1, device=up.device)
    size = min(power_of_two(cols), CHUNK)
    smooth_kernel[(rows,)](
        _bits(up),
        scale,
        up.stride(0),
        cols,
        CHUNKS=-(-cols // size),
        BLOCK=size,
        SOURCE=dtype_name(up.dtype),
        num_warps=_warps(size),
    )
    return scale


@triton.jit
def norm_backward_kernel(
    g_ptr, x_ptr, also_ptr, weight_ptr, inverse_ptr, dx_ptr, dw_ptr, g_stride, x_stride, also_stride, rows, cols,
    COUNT: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr, SOURCE: tl.constexpr,
):  # fmt: skip
    """Gradients of COUNT rows one after another, and the sum of those of the weight."""
    column, first = tl.arange(0, BLOCK), tl.program_id(0) * COUNT
    weight = tl.load(weight_ptr + column, mask=column < cols, other=0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.range(COUNT, num_stages=STAGES):
        row = first + i
        width = tl.where(row < rows, cols, 0)  # what does not exist is zero, and adds nothing
        inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
        g = row_of(g_ptr, row, g_stride, width, BLOCK, SOURCE)
        normal = row_of(x_ptr, row, x_stride, width, BLOCK, SOURCE) * inverse
        t = g * weight
        mean = tl.div_rn(pairwise(t * normal, LEVELS), cols.to(tl.float32))
        dx = (t - normal * mean) * inverse
        if also_ptr is not None:
            dx = dx + row_of(also_ptr, row, also_stride, width, BLOCK, SOURCE)
        dx = bits_as(rounded(dx, SOURCE), SOURCE)
        tl.store(dx_ptr + row.to(tl.int64) * cols + column, dx, mask=column < width)
        total = total + g * normal
    tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * cols + column, total, mask=column < cols)


@triton.jit
def join_kernel(parts_ptr, sums_ptr, rows, cols, COUNT: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """Pairwise sums of COUNT partial sums each."""
    row, column = tl.arange(0, COUNT)[:, None], tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    row = row + tl.program_id(1) * COUNT
    inside = (row < rows) & (column[None, :] < cols)
    x = tl.load(parts_ptr + row.to(tl.int64) * cols + column[None, :], mask=inside, other=0.0)
    for _ in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, [x.shape[0] // 2, 2, WIDTH]), axis=1)
    tl.store(sums_ptr + tl.program_id(1) * cols + column, tl.reshape(x, [WIDTH]), mask=column < cols)


def norm_backward(g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, also: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of a norm's input and weight."""
    rows, cols = x.shape
    size = power_of_two(cols)
    dx = torch.empty(rows, cols, dtype=x.dtype, device=x.device)
    parts = torch.empty(-(-rows // ROWS), cols, device=x.device)
    norm_backward_kernel[(len(parts),)](
        _bits(g),
        _bits(x),
        None if also is None else _bits(also),
        weight,
        inverse,
        _bits(dx),
        parts,
        g.stride(0),
        x.stride(0),
        0 if also is None else also.stride(0),
        rows,
        cols,
        COUNT=ROWS,
        STAGES=STAGES,
        BLOCK=size,
        LEVELS=size.bit_length() - 1,
        SOURCE=dtype_name(x.dtype),
        num_warps=_warps(size),
        enable_fp_fusion=False,
    )
    while len(parts) > 1:
        parts = _joined(parts)
    return dx, parts[0]


def _joined(parts: Tensor) -> Tensor:
    rows, cols = parts.shape
    count, width = min(power_of_two(rows), JOINED), 16
    sums = torch.empty(-(-rows // count), cols, device=parts.device)
    grid = (-(-cols // width), len(sums))
    join_kernel[grid](parts, sums, rows, cols, COUNT=count, WIDTH=width, LEVELS=count.bit_length() - 1, num_warps=4)
    return sums


def _warps(size: int) -> int:
    """8 to 32 elements a thread, as rows are long."""
    return min(max(size // 512, 1), 16)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)
