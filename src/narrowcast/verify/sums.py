"""What the sums of tensor cores may lose, and what the accumulator's model says that they are."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from narrowcast.accumulate import HOPPER_FP8, HOPPER_FP16, Aligned, Codes
from narrowcast.accumulate.doubles import exponent, power_of_two
from narrowcast.formats import format
from narrowcast.kernels.gemm import exact_values, outer_scale
from narrowcast.kernels.plan import BLOCKS, Plan
from narrowcast.ops import split
from narrowcast.quantize import QTensor

FLOAT32 = 2.0**-24
UNDERFLOW = 2.0**-120  # 64 sums that end below float32's normal numbers
BLOCK = 128
_NONE = -450  # exponent of a zero: its products vanish beside any other


def _fused(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    return (a.double() * b.double() + total.double()).float()


#: how a sum of codes ``a``, the scale ``s`` of its row and the scale ``t`` of its column come to a running total
ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "total + a (s t), fused": lambda total, a, s, t: _fused(a, s * t, total),
    "total + (a s) t, fused": lambda total, a, s, t: _fused(a * s, t, total),
    "total + (a t) s, fused": lambda total, a, s, t: _fused(a * t, s, total),
    "total + a (s t)": lambda total, a, s, t: total + a * (s * t),
    "total + (a s) t": lambda total, a, s, t: total + a * s * t,
    "total + (a t) s": lambda total, a, s, t: total + a * t * s,
}


#: the orders that the library has on an H100, by the tiles of both operands (`bench/accumulator.py`: all bits agree)
KNOWN = {("row", "row"): "total + (a t) s, fused", ("1x128", "1x128"): "total + (a s) t, fused"}


def product(a: QTensor, b: QTensor, plan: Plan) -> Tensor:
    """Return what the accumulator's model gives, float32 ``[M, N]``."""
    tiles = (plan.tile_a, plan.tile_b)
    if "row" in tiles:  # a tensor's scale beside a row's is given to the library once a row
        tiles = ("row", "row")
    return in_order(a, b, plan, KNOWN.get(tiles, "total + a (s t), fused"), plan.tile_a in BLOCKS)


def in_order(a: QTensor, b: QTensor, plan: Plan, order: str, each: bool) -> Tensor:
    """Return the model's ``[M, N]`` with scales multiplied in one of `ORDERS`.

    ``each``: into each sum of 128 (scales of blocks must be), or into the finished one.
    """
    left, right = operands(a, b, plan)
    add, total = ORDERS[order], torch.zeros((), device=left.values.device)
    if plan.units != "fp8":
        factor, sums = outer_scale(a, b), plan.accumulator.matmul(left, right)
        return sums if factor is None else sums * factor
    assert left.scale is not None
    assert right.scale is not None
    down, across = left.scale[:, ::BLOCK].mT[:, :, None], right.scale[:, ::BLOCK].mT[:, None]  # [T, M, 1], [T, 1, N]
    if not each:
        ((x, w),) = zip(*(_chunks(side, side.values.shape[1]) for side in (left, right)), strict=True)
        return add(total, plan.accumulator.matmul(x, w), down[0], across[0])
    for i, (x, w) in enumerate(zip(_chunks(left, BLOCK), _chunks(right, BLOCK), strict=True)):
        total = add(total, HOPPER_FP8.matmul(x, w), down[i], across[i])
    return total


def bound(a: QTensor, b: QTensor, plan: Plan) -> Tensor:
    """Return ``[M, N]`` float64: how far a tensor core's float32 product may lie from the exact one, by the model.

    Each group of products loses what `lost` says; FP8 sums are moved to float32 every 128 unless the plan is fast, and
    scales cost up to four roundings more.
    """
    left, right = operands(a, b, plan)
    terms, factor = _terms(a, b, plan), _factor(a, b, plan)
    if plan.units != "fp8":
        roundings = 0 if factor is None else 4
        total = lost(left, right, HOPPER_FP16)
        return (total if factor is None else total * factor) + roundings * FLOAT32 * terms + UNDERFLOW
    assert left.scale is not None
    assert right.scale is not None
    depth = left.values.shape[1]
    size = depth if plan.fast else BLOCK
    total = (-(-depth // BLOCK) + 4) * FLOAT32 * terms + UNDERFLOW
    for i, (x, w) in enumerate(zip(_chunks(left, size), _chunks(right, size), strict=True)):
        total += lost(x, w, HOPPER_FP8) * left.scale[:, i * size, None].double() * right.scale[:, i * size].double()
    return total


def float32_bound(a: QTensor, b: QTensor, plan: Plan) -> Tensor:
    """Return ``[M, N]`` float64: how far a product may lie from the exact one if float32 sums it in any order."""
    return (min(a.padded[1], b.padded[1]) + 4) * FLOAT32 * _terms(a, b, plan) + UNDERFLOW


def _terms(a: QTensor, b: QTensor, plan: Plan) -> Tensor:
    """Return the sums of the magnitudes of products."""
    left, right = operands(a, b, plan)
    total, factor = left.scaled().double().abs() @ right.scaled().double().abs().mT, _factor(a, b, plan)
    return total if factor is None else total * factor


def _factor(a: QTensor, b: QTensor, plan: Plan) -> Tensor | None:
    factor = None if plan.units == "fp8" else outer_scale(a, b)
    return None if factor is None else factor.double()


def lost(a: Codes, b: Codes, model: Aligned) -> Tensor:
    """Return ``[M, N]`` float64: the most that ``model`` drops from the sums of products of ``a`` and ``b``.

    Of each product, and of the running sum, what lies below ``fraction`` bits behind the largest exponent: a unit, or
    all of it where that is less; of each sum, what lies below its register. The exponent is that of the operands: where
    one is subnormal (float16 below 2**-14) it keeps its format's lowest, and products lose more than their size lets
    expect. No running sum exceeds the span of all of them, wherever the library begins one anew along K, but by what
    was lost before.
    """
    values, powers = [x.values.double() for x in (a, b)], [_powers(x) for x in (a, b)]
    found = total = low = high = values[0][:, :0] @ values[1][:, :0].mT
    for k in range(0, a.values.shape[1], model.group):
        (x, w), (p, q) = ([side[:, k : k + model.group] for side in both] for both in (values, powers))
        largest, span = (p[:, None] * q[None]).amax(-1), high - low + found
        unit = torch.maximum(largest, span) * 2.0**-model.fraction
        cut = torch.minimum((x[:, None] * w[None]).abs(), unit[..., None]).sum(-1) + torch.minimum(span, unit)
        total = total + x @ w.mT
        low, high = torch.minimum(low, total), torch.maximum(high, total)
        cut += (high - low + found) * 2.0**-model.register
        found = found + torch.where(largest > 0, cut, 0.0)
    return found


def _powers(x: Codes) -> Tensor:
    """Return the power of two of each value, no less than its format's lowest; 0 for zeros."""
    values = x.values.double()
    lowest = int(exponent(torch.tensor(x.smallest_normal, dtype=torch.float64), _NONE))
    return torch.where(values == 0, 0.0, power_of_two(exponent(values, lowest)))


def operands(a: QTensor, b: QTensor, plan: Plan) -> tuple[Codes, Codes]:
    """Return what the units multiply, and the scales of FP8 codes; rows that padding filled are cut off."""
    depth = min(a.padded[1], b.padded[1])
    return _codes(a, plan.a, depth), _codes(b, plan.b, depth)


def _codes(q: QTensor, carrier: str, depth: int) -> Codes:
    smallest, rows = format(carrier).smallest_normal, q.shape[0]
    if carrier in ("bfloat16", "float16"):
        return Codes(exact_values(q, getattr(torch, carrier)).view(q.padded)[:rows, :depth].float(), None, smallest)
    codes = split(replace(q, shape=(rows, depth)))  # K as long as both operands are padded
    return replace(codes, smallest_normal=smallest)


def _chunks(x: Codes, size: int) -> list[Codes]:
    return [Codes(values, None, x.smallest_normal) for values in x.values.split(size, 1)]
