"""Sums of two float64 that are rounded once, whatever they are rounded to."""

import torch
from torch import Tensor

from narrowcast.formats import Format, Rounding


def odd_sum(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x + y`` (float64) rounded *to odd*: rounding it to 51 bits or fewer rounds the exact sum once.

    The error of the addition is itself a float64 (Knuth's TwoSum); where there is one and the sum is even, the sum
    moves by one unit towards it (Boldo & Melquiond, "When double rounding is odd", 2005).
    """
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    bits = total.view(torch.int64)
    toward = torch.where((error > 0) == (total > 0), 1, -1)
    moved = bits + toward * ((error != 0) & (bits & 1 == 0) & total.isfinite())
    return moved.view(torch.float64)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent as float64 for int64 exponents of -1022 to 1023."""
    return ((exponent + 1023) << 52).view(torch.float64)


def exponent(x: Tensor, lowest: int) -> Tensor:
    """Return floor(log2(abs(x))) as int64, at least ``lowest`` (which zeros get); x float64, normal."""
    field = (x.view(torch.int64) >> 52) & 0x7FF
    return (field - 1023).clamp_min_(lowest)


def truncated(x: Tensor, fraction: int) -> Tensor:
    """Return float64 ``x`` with all but ``fraction`` mantissa bits cut off (toward zero)."""
    return (x.view(torch.int64) & ~((1 << (52 - fraction)) - 1)).view(torch.float64)


def rounded(x: Tensor, fmt: Format, mode: Rounding) -> Tensor:
    """Return float64 ``x`` rounded once to ``fmt``, as float64."""
    return fmt.round(x, mode).double()
