"""Ladders: the values of a format in ascending order, and where each cell between two of them is cut.

A format that is neither a minifloat nor an integer is a list of values. Rounding to a list needs no arithmetic, only
comparisons: in each cell between neighbours there is one number from which on the upper one is chosen, and it can be
found once, in exact arithmetic, for every deterministic rounding mode. What is left to do for an input is to find its
place among those numbers, and that is the same on every device.

Numbers are compared by *sortable keys*: the bits of a float read as an integer, with the bits of negative ones flipped
below the sign. Keys ascend as floats do, tell -0 from +0 and put NaNs at either end, so nothing needs a special case.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from narrowcast.formats.rounding import Rounding

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_GUARD_AND_STICKY = 2  # fractional bits that tell below, on and above the middle apart
_PREFIX_BITS = 16


@dataclass(frozen=True, eq=False)
class Ladder:
    """The finite values of a format and the middles of its cells.

    Attributes:
        values: ascending, each a float32; -0.0 stands before 0.0 where the format has both.
        codes: the code of each.
        middles: of each cell, the first float64 that is not below its middle. What the middle is, the format says:
            half way in value, in the bit string, in the logarithm.
        ties: where that float64 is the middle itself, so that an input can lie on it.
    """

    values: Floats
    codes: Integers
    middles: Floats
    ties: Flags

    @property
    def negative(self) -> Flags:
        """Cells whose values are all zero or negative: there the magnitude grows downwards."""
        upper, lower = self.values[1:], self.values[:-1]
        return (upper <= 0) & (upper > lower)

    @property
    def level(self) -> Integers:
        """Steps from zero (else the value nearest to it, rather a positive one), up to 3: then only evenness counts.

        That is all a rounding mode may ask of a code: is it zero, and is it even.
        """
        steps = np.concatenate([[0], np.cumsum(np.diff(self.values) > 0)])
        steps = np.abs(steps - steps[-1 - int(np.abs(self.values[::-1]).argmin())])
        level: Integers = np.where(steps < 2, steps, 2 + (steps & 1))
        return level


@dataclass(frozen=True)
class Beyond:
    """What stands at both ends of a format that does not saturate everything.

    Attributes:
        value: infinity or NaN, as magnitude.
        positive, negative: its codes.
        rung: where it stands on the ladder: finite numbers are rounded to it as if it were this magnitude. Infinite
            where only infinities become it and finite numbers saturate.
    """

    value: float
    positive: int
    negative: int
    rung: float = math.inf


def half_way(values: Floats) -> tuple[Floats, Flags]:
    """Return middles and ties of cells that are halved in value. Exact: the error of each sum is found (Knuth)."""
    a, b = values[:-1], values[1:]
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    middles = total / 2
    return np.where(error > 0, np.nextafter(middles, np.inf), middles), error == 0


def mirrored(magnitudes: Ladder, negative: Callable[[Integers], Integers]) -> Ladder:
    """Return the ladder of both signs from that of the magnitudes, which begins with the one zero.

    ``negative`` gives the codes of the negatives of the (non-zero) codes.
    """
    middles = np.where(magnitudes.ties, magnitudes.middles, np.nextafter(magnitudes.middles, -np.inf))
    return Ladder(
        np.concatenate([-magnitudes.values[:0:-1], magnitudes.values]),
        np.concatenate([negative(magnitudes.codes[:0:-1]), magnitudes.codes]),
        np.concatenate([-middles[::-1], magnitudes.middles]),
        np.concatenate([magnitudes.ties[::-1], magnitudes.ties]),
    )


def cuts(ladder: Ladder, rounding: Rounding, wide: bool) -> Integers:
    """Return the key from which on each cell rounds to its upper value, ``[n - 1]``.

    The mode is asked what it does just above the value nearer to zero, on the middle and just below the other value;
    no mode can tell more from a guard bit and a sticky bit. ``wide``: keys of float64 instead of float32.
    """
    low, high, down = ladder.values[:-1], ladder.values[1:], ladder.negative
    early, tie, late = _leaves(rounding, np.where(down, ladder.level[1:], ladder.level[:-1]), down)
    # magnitudes that leave early do so right at the value nearer to zero; and so on, to never
    grows = np.select([early, tie, late], [low, ladder.middles, ladder.middles], high)
    shrinks = np.select([early, tie, late], [high, ladder.middles, ladder.middles], low)
    strict = np.where(down, ~late | (tie & ~early & ladder.ties), early | (late & ~tie & ladder.ties))
    at = np.where(down, shrinks, grows)
    apart = low < high  # but -0 and 0: the cell between them is cut at 0 in every mode
    at = np.where(apart & (at == 0), np.where(strict, 0.0, -0.0), np.where(apart, at, high))
    return keys(at, wide) + (_equal(at, wide) & strict & apart)


def floors(ladder: Ladder, wide: bool) -> Integers:
    """Return the key from which on a number is not below each value but the lowest, ``[n - 1]``."""
    upper = ladder.values[1:]
    return keys(np.where((upper == 0) & (upper > ladder.values[:-1]), -0.0, upper), wide)


def _leaves(rounding: Rounding, level: Integers, negative: Flags) -> tuple[Flags, Flags, Flags]:
    """Return whether a magnitude leaves the value nearer to zero: below, on and above the middle of its cell."""
    n = (level[:, None] << _GUARD_AND_STICKY) + np.array([1, 2, 3])
    sign = np.where(negative[:, None], -1, np.zeros_like(n))
    rounded = rounding(_int32(n), _GUARD_AND_STICKY, _int32(sign))
    leaves = (rounded.numpy() - level[:, None]).astype(np.bool_)
    return leaves[:, 0], leaves[:, 1], leaves[:, 2]


def _int32(array: Integers) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32))


# --- keys ---


def keys(x: Floats, wide: bool) -> Integers:
    """Return the sortable key of the first float32 (float64 if ``wide``) that is not below each number."""
    if wide:
        bits = x.view(np.int64)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    with np.errstate(over="ignore", under="ignore"):
        near = x.astype(np.float32)
    narrow = near.view(np.int32).astype(np.int64)
    return (narrow ^ ((narrow >> 31) & 0x7FFFFFFF)) + (near < x)


def _equal(x: Floats, wide: bool) -> Flags:
    """Return where the float that `keys` found is the number itself."""
    if wide:
        return np.ones(x.shape, dtype=np.bool_)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x.astype(np.float32) == x)


def starts(first: Integers, wide: bool) -> tuple[Integers, int]:
    """Return where to begin the search for a key among ``first`` (ascending), by its 16 leading bits, and how far.

    The first result holds the last place whose key is not above the lowest key with those bits, ``[65536]``; the
    second how many doublings reach the last place of any prefix (0 where one comparison is never needed).
    """
    shift = (64 if wide else 32) - _PREFIX_BITS
    prefix = np.arange(-(1 << (_PREFIX_BITS - 1)), 1 << (_PREFIX_BITS - 1), dtype=np.int64)
    begin = np.searchsorted(first, prefix << shift, side="right") - 1
    end = np.searchsorted(first, (prefix << shift) + ((1 << shift) - 1), side="right") - 1
    return begin, int((end - begin).max()).bit_length()
