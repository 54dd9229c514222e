"""What the sums of tensor cores may lose, and what the accumulator's model says that they are."""

import torch
from torch import Tensor

from narrowcast.accumulate import HOPPER_FP8, Codes
from narrowcast.kernels.plan import BLOCKS, Plan
from narrowcast.quantize import QTensor

FLOAT32 = 2.0**-24
BLOCK = 128


def bound(plan: Plan, depth: int) -> float:
    """Return what the sum of ``depth`` products may lose, as a share of the sum of their magnitudes.

    Hopper's FP8 sums cut each of 32 products and the running sum below 13 bits behind the largest exponent, and the sum
    to 13 bits: 34 units of 2**-13 every 32 products, each at most the magnitudes summed so far; with promotion, of each
    128. 16-bit operands lose float32's last bits, cut off; scales cost three roundings more.
    """
    if plan.units != "fp8":
        return 2 * depth * FLOAT32
    steps = -(-depth // 32) if plan.fast else 4
    return steps * 34 * 2.0**-13 + (depth // 128 + 4) * FLOAT32


def products(a: QTensor, b: QTensor, plan: Plan) -> list[Tensor]:
    """Return what the accumulator's model gives, float32; two answers where either scale may multiply first.

    On an H100 the library multiplies by the product of the two scales where they are of tensors, or of 1x128 and
    128x128 tiles (all bits agree). For rows, and for two operands in 1x128 tiles, as many bits agree as would by chance
    if one scale multiplied each sum, rounded, and the other came with the addition; which is first is not known.
    """
    left, right = (_as_codes(q) for q in (a, b))
    if plan.tile_a in BLOCKS and plan.tile_a != plan.tile_b:
        return [plan.accumulator.matmul(left, right)]
    assert left.scale is not None
    assert right.scale is not None
    down, across = left.scale[:, ::BLOCK].mT[:, :, None], right.scale[:, ::BLOCK].mT[:, None]  # [T, M, 1], [T, 1, N]
    if plan.tile_a == "tensor" and plan.tile_b == "tensor":
        return [_bare(left, right, plan) * (down[0] * across[0])]
    if plan.tile_a not in BLOCKS:
        total = _bare(left, right, plan)
        return [total * down[0] * across[0], total * across[0] * down[0]]
    found = [torch.zeros(left.values.shape[0], right.values.shape[0], device=left.values.device) for _ in "ab"]
    for i, (x, w) in enumerate(zip(left.values.split(BLOCK, 1), right.values.split(BLOCK, 1), strict=True)):
        part = HOPPER_FP8.matmul(Codes(x, None, left.smallest_normal), Codes(w, None, right.smallest_normal))
        for side, (first, second) in enumerate(((down[i], across[i]), (across[i], down[i]))):
            found[side] = (found[side].double() + (part * first).double() * second.double()).float()
    return found


def _bare(a: Codes, b: Codes, plan: Plan) -> Tensor:
    """Return the sums of the codes alone."""
    return plan.accumulator.matmul(Codes(a.values, None, a.smallest_normal), Codes(b.values, None, b.smallest_normal))


def _as_codes(q: QTensor) -> Codes:
    """Return values and scales of FP8 codes, rows that padding filled cut off."""
    values = q.cast.format.decode(q.codes).view(q.padded)
    scale = torch.ones_like(values)
    blocks, _ = q.cast.tile.blocks(scale)
    for factor in q.cast.scale.restore(q.scales, q.tensor_scale):
        blocks.mul_(factor)
    rows = q.shape[0]
    return Codes(values[:rows], scale[:rows], q.cast.format.smallest_normal)
