"""Logarithmic numbers: a sign and the base-2 logarithm of the magnitude in fixed point.

    value = (-1)**sign * 2**(k / gamma - bias),   k = 0 to 2**(width - 1) - 1

``gamma``, the base factor, is a power of two: log2(gamma) bits of k are fraction and the others integer. A product is a
sum of k's. Each value is the float32 next to the power; the code with k = 0 is zero, and with a sign NaN.

Nearest means nearest in ratio: neighbours are parted at their geometric mean, 2**((2 k + 1) / (2 gamma) - bias), which
is irrational, so there are no ties. It is found here with 160 bits once, instead of with a rounded logarithm for every
input, so codes are the same on every device. Next to zero, where ratios mean nothing, the cell is halved in value.
Random modes go up in proportion to value, as in every format: in proportion to the logarithm they would be biased.
Source: Zhao et al. 2022, "LNS-Madam" (8 bits, gamma 8); the reserved zero is our choice.
"""

import math
from dataclasses import dataclass

import numpy as np

from narrowcast.errors import InputError
from narrowcast.formats.format import Layout
from narrowcast.formats.ladder import Ladder, mirrored
from narrowcast.formats.tabulated import Tabulated

_PRECISION = 160  # fractional bits of the powers of two
_SLACK = 24  # of which so many may be wrong: 2 * gamma products that each lose less than two units


@dataclass(frozen=True)
class Logarithmic(Tabulated):
    """A logarithmic number of ``width`` bits with steps of a factor ``2**(1 / gamma)``.

    Attributes:
        name: e.g. ``"lns8_8"``.
        width: bits of one code, 3 to 16.
        gamma: steps per octave, a power of two, 1 to 4096.
        bias: octaves by which the range is moved down: the smallest value is one step above 2**-bias.
    """

    name: str
    width: int
    gamma: int
    bias: int = 0

    def __post_init__(self) -> None:
        if not 3 <= self.width <= 16:
            raise InputError(f"format {self.name}: logarithmic numbers have 3 to 16 bits, found {self.width}")
        if not (1 <= self.gamma <= 4096 and self.gamma & (self.gamma - 1) == 0):
            raise InputError(f"format {self.name}: gamma must be a power of two, 1 to 4096, found {self.gamma}")
        top = ((1 << (self.width - 1)) - 1) / self.gamma - self.bias
        if top > 127 or self.bias > 126:
            raise InputError(
                f"format {self.name}: its range, 2**{-self.bias} to 2**{top:g}, does not fit float32's; raise gamma"
            )

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return self.width

    @property
    def layout(self) -> Layout:
        """Sign and logarithm; what would be a mantissa are the logarithm's fraction bits."""
        fraction = self.gamma.bit_length() - 1
        note = "exponent and mantissa are the integer and fraction bits of log2"
        return Layout("logarithmic", 1, max(0, self.width - 1 - fraction), fraction, "nan, no -0", note)

    @property
    def nan_code(self) -> int:
        """Zero's logarithm with a sign."""
        return 1 << (self.width - 1)

    def ladder(self) -> Ladder:
        """Return zero and the powers, parted at their geometric means."""
        count = 1 << (self.width - 1)
        powers = _powers(2 * self.gamma)
        values = np.array([0.0] + [self._value(powers, k) for k in range(1, count)])
        middles = np.array([values[1] / 2] + [self._middle(powers, k) for k in range(1, count - 1)])
        ties = np.arange(count - 1) == 0
        return mirrored(Ladder(values, np.arange(count), middles, ties), lambda code: code | self.nan_code)

    def _value(self, powers: list[int], k: int) -> float:
        """Return the float32 next to 2**(k / gamma - bias)."""
        octave, step = divmod(k, self.gamma)
        mantissa = (powers[2 * step] + (1 << (_PRECISION - 24))) >> (_PRECISION - 23)
        return math.ldexp(mantissa, octave - self.bias - 23)

    def _middle(self, powers: list[int], k: int) -> float:
        """Return the first float64 above 2**((k + 1/2) / gamma - bias)."""
        octave, step = divmod(2 * k + 1, 2 * self.gamma)
        return math.ldexp((powers[step] >> (_PRECISION - 52)) + 1, octave - self.bias - 52)


def _powers(count: int) -> list[int]:
    """Return 2**(i / count), i = 0 to count - 1, in fixed point, rounded down; ``count`` is a power of two."""
    root = 2 << _PRECISION
    for _ in range(count.bit_length() - 1):
        root = math.isqrt(root << _PRECISION)
    powers = [1 << _PRECISION]
    for _ in range(count - 1):
        powers.append(powers[-1] * root >> _PRECISION)
    tail = (1 << (_PRECISION - 53)) - 1  # none is so near to the middle or the end of a float64 that the slack matters
    assert all((p & tail) < tail - (1 << _SLACK) for p in powers), "raise the precision"
    return powers
