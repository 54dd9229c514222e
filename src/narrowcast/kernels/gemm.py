"""Products of two quantized matrices on tensor cores, the kernel twin of `ops.matmul`: by the library or by ours.

    a [M, K] codes, b [N, K] codes  ->  y [M, N] = alpha * sum_k a b, scales put back

The FP8 units want K and N in multiples of 16, and M too under block scales: codes of zero are appended, which add
nothing, and cut off the result. Scales of one per tensor or row multiply the finished sums, block scales each sum of
128. On a CPU (the interpreter's tests) the same operands are multiplied in float32.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import CheckFailed
from narrowcast.formats import format, pack, unpack
from narrowcast.kernels import block_gemm
from narrowcast.kernels.plan import Plan, in_words
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import Narrow, One, PowerOfTwo, TwoLevel, Wide

STEP = 16  # what FP8 sizes are multiples of
BLOCK = 128


def gemm(a: QTensor, b: QTensor, plan: Plan, out: torch.dtype, alpha: float = 1.0, *, inside: bool = False) -> Tensor:
    """Return ``[M, N]`` in ``out`` (rounded once from the sums) of ``a`` ``[M, K]`` and ``b`` ``[N, K]``.

    Args:
        a, b: quantized along K, padded to the same K.
        plan: `kernels.plan.plan` of their casts.
        out: float32, bfloat16 or float16.
        alpha: multiplies the sums.
        inside: whether an operator calls this, which needs no other: that saves the host some 100 microseconds.
    """
    rows, cols, depth = a.shape[0], b.shape[0], min(a.padded[1], b.padded[1])
    if plan.units == "fp8":
        scale = block_scale(a)
        scales = (scale * alpha if alpha != 1.0 else scale, block_scale(b))
        codes = (_carried(a, plan.a)[:, :depth], _carried(b, plan.b)[:, :depth])
        how = (plan.a, plan.b, plan.tile_a, plan.tile_b, out, plan.fast, plan.by)
        product: Callable[..., Tensor] = _fp8_product if inside else torch.ops.narrowcast.fp8_gemm
        made = product(*codes, *scales, *how)
    else:
        kind = getattr(torch, plan.units)
        values = (exact_values(a, kind, inside)[:, :depth], exact_values(b, kind, inside)[:, :depth])
        product = _wide_product if inside else torch.ops.narrowcast.wide_gemm
        made = product(*values, outer_scale(a, b, alpha), out)
    return made if made.shape == (rows, cols) else made[:rows, :cols]


def transposed(q: QTensor) -> QTensor:
    """Return the same codes with rows and columns exchanged; their tile is a square or the whole tensor."""
    rows, cols = q.padded
    bits, tile = q.cast.format.bits, q.cast.tile
    codes = q.codes.t().contiguous() if bits == 8 else pack(unpack(q.codes, bits, cols).t(), bits)
    scales = q.scales
    if not tile.is_tensor:
        down, across = rows // tile.rows, cols // tile.cols
        scales = scales.reshape(down, across).t().reshape(across, 1, down, 1)
    return replace(q, codes=codes, scales=scales, shape=q.shape[::-1], padded=(cols, rows))


def block_scale(q: QTensor) -> Tensor:
    """Return the float32 scales of ``q`` without the axes of size 1 that lie inside a tile; ones where it has none."""
    factors = q.cast.scale.restore(q.scales, q.tensor_scale)
    scale = factors[0] if factors else torch.ones_like(q.scales)
    tile = q.cast.tile
    if tile.is_tensor:
        return scale.reshape(1)
    if tile.cols == 0:
        return scale.reshape(-1, 1)
    return scale.reshape(q.padded[0] // tile.rows, q.padded[1] // tile.cols)


def outer_scale(a: QTensor, b: QTensor, alpha: float = 1.0) -> Tensor | None:
    """Return what multiplies the sums of 16-bit operands: tensor scales and constants, float32 ``[]``; None for 1."""
    factors = [f for f in (_outer(a), _outer(b)) if f is not None]
    if not factors and alpha == 1.0:
        return None
    total = torch.full((), alpha, device=a.codes.device)
    for factor in factors:
        total = total * factor
    return total


def _outer(q: QTensor) -> Tensor | None:
    scale = q.cast.scale
    if isinstance(scale, TwoLevel):
        return q.tensor_scale
    if isinstance(scale, Wide):
        return q.scales.reshape(())
    if isinstance(scale, PowerOfTwo) and scale.constant != 1.0:
        return torch.full((), scale.constant, device=q.codes.device)
    return None


def exact_values(q: QTensor, dtype: torch.dtype, inside: bool = False) -> Tensor:
    """Return ``[R, K]``: elements times their block's scale, exact in ``dtype`` (`plan` has seen to it).

    ``inside``: as for `gemm`.
    """
    if q.cast.format.name == dtype_name(dtype):
        return q.codes.view(dtype)
    if q.codes.device.type == "cuda" and dtype == torch.bfloat16 and one_pass(q.cast):
        from narrowcast.kernels.widen import widen_codes

        codes = (q.codes, q.scales, q.cast.spelling)
        made: Tensor = widen_codes(*codes) if inside else torch.ops.narrowcast.widen(*codes)
        return made
    return decoded(q, dtype)


def decoded(q: QTensor, dtype: torch.dtype) -> Tensor:
    """Return `exact_values` by PyTorch: what its kernel is held against."""
    fmt, scale = q.cast.format, q.cast.scale
    values = fmt.decode(unpack(q.codes, fmt.bits, q.padded[-1])).view(q.padded)
    if not isinstance(scale, One | Wide):
        rule = PowerOfTwo() if isinstance(scale, PowerOfTwo) else scale
        blocks, _ = q.cast.tile.blocks(values)
        blocks.mul_(rule.restore(q.scales, q.tensor_scale)[0])
    return values.to(dtype)


def one_pass(cast: Cast) -> bool:
    """Whether a kernel decodes codes of ``cast`` in one pass (`kernels.widen`): whole words under scales of a byte."""
    scale = cast.scale
    byte = isinstance(scale, PowerOfTwo) or (isinstance(scale, Narrow | TwoLevel) and scale.format.bits <= 8)
    return byte and in_words(cast)


def _carried(q: QTensor, carrier: str) -> Tensor:
    """Return the codes as codes of the FP8 format ``carrier``, which has the same values."""
    fmt = q.cast.format
    if fmt.name == carrier:
        return q.codes
    return format(carrier).encode(fmt.decode(unpack(q.codes, fmt.bits, q.padded[-1]))).to(torch.uint8).view(q.padded)


def _fp8_product(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    kind_a: str,
    kind_b: str,
    tile_a: str,
    tile_b: str,
    out: torch.dtype,
    fast: bool,
    by: str,
) -> Tensor:
    rows, cols, depth = a.shape[0], b.shape[0], a.shape[1]
    if min(rows, cols, depth) == 0:
        return torch.zeros(rows, cols, dtype=out, device=a.device)
    if a.device.type == "cpu":
        return _plainly(a, b, scale_a, scale_b, kind_a, kind_b, out)
    if by == "ours" or (by == "faster" and block_gemm.faster(rows, cols, _processors(a.device))):
        return block_gemm.product(a, b, scale_a, scale_b, tile_b, out)
    blocks = tile_a not in ("tensor", "row")
    short = (-rows % STEP if blocks else 0, -cols % STEP, -depth % STEP)
    left, right = _padded(a, short[0], short[2]), _padded(b, short[1], short[2])
    if tile_a != tile_b and not blocks:
        tile_a = tile_b = "row"
    first, first_kind = _layout(scale_a, tile_a, *left.shape)
    second, second_kind = _layout(scale_b, tile_b, *right.shape)
    left, right = left.contiguous().view(_dtype(kind_a)), right.contiguous().view(_dtype(kind_b))
    try:
        with torch.cuda.device_of(a):
            y = F.scaled_mm(
                left, right.t(), first, first_kind, second, second_kind, output_dtype=out, use_fast_accum=fast
            )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        what = f"{kind_a} [{rows}, {depth}] {tile_a} by {kind_b} [{cols}, {depth}] {tile_b}, {out}"
        raise CheckFailed(f"kernel fp8_gemm, {what}: the library refused it: {line}") from None
    return y[:rows, :cols].contiguous()


_fp8_gemm = torch.library.custom_op("narrowcast::fp8_gemm", _fp8_product, mutates_args=())


@_fp8_gemm.register_fake
def _(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    kind_a: str,
    kind_b: str,
    tile_a: str,
    tile_b: str,
    out: torch.dtype,
    fast: bool,
    by: str,
) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=out)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _dtype(kind: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, f"float8_{kind}")
    return found


def _layout(scale: Tensor, tile: str, rows: int, depth: int) -> tuple[Tensor, F.ScalingType]:
    """Return the scales as the library wants them for codes ``[rows, depth]``, and what it calls that."""
    if tile == "tensor":
        return scale, F.ScalingType.TensorWise
    if tile == "row":
        scale = scale.expand(rows, 1) if scale.numel() == 1 else _padded(scale, rows - scale.shape[0], 0)
        return scale.contiguous(), F.ScalingType.RowWise
    if tile == "1x128":  # [rows, K / 128], rows side by side
        scale = _padded(scale, rows - scale.shape[0], 0)
        return scale.t().contiguous().t(), F.ScalingType.BlockWise1x128
    # [K / 128 in fours, rows / 128], K side by side
    return _padded(scale, 0, -scale.shape[1] % 4).contiguous().t(), F.ScalingType.BlockWise128x128


def _padded(x: Tensor, rows: int, cols: int) -> Tensor:
    """Return a matrix with zeros below and beside it; itself where there are none to add (`F.pad` would copy)."""
    return F.pad(x, (0, cols, 0, rows)) if rows or cols else x


def _plainly(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, kind_a: str, kind_b: str, out: torch.dtype
) -> Tensor:
    """Return what the FP8 units would, but for the order of the sums."""
    sides = []
    for codes, scale, kind in ((a, scale_a, kind_a), (b, scale_b, kind_b)):
        values = format(kind).decode(codes)
        if scale.dim() == 2:
            tall, wide = values.shape[0] // scale.shape[0], values.shape[1] // scale.shape[1]
            scale = scale.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
        sides.append(values * scale)
    return (sides[0] @ sides[1].t()).to(out)


def _wide_product(a: Tensor, b: Tensor, factor: Tensor | None, out: torch.dtype) -> Tensor:
    if a.device.type == "cpu":
        y = a.float() @ b.float().t()
    elif factor is None and out == a.dtype:
        return torch.mm(a, b.t())
    else:
        y = torch.mm(a, b.t(), out_dtype=torch.float32)
    return (y if factor is None else y * factor).to(out)


_wide_gemm = torch.library.custom_op("narrowcast::wide_gemm", _wide_product, mutates_args=())


@_wide_gemm.register_fake
def _(a: Tensor, b: Tensor, factor: Tensor | None, out: torch.dtype) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=out)
