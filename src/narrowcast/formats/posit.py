"""Posits of any width and exponent size: tapered floats with neither overflow nor underflow.

The bits after the sign are a regime (a run of equal bits and the bit that ends it), up to ``es`` exponent bits and what
is left as fraction; exponent bits that do not fit are zero:

    value = 2**(k * 2**es + e) * (1 + f),   k = run - 1 for a run of ones, -run for a run of zeros

Negative numbers are the two's complement of their magnitude, so codes sort like values. Code 10...0 is NaR ("not a
real"), which stands for NaN and the infinities. The one rounding of the standard is to the nearest *bit string*, ties
to even: neighbours are parted by the posit between them that has one bit more. Where exponent bits are cut that is a
power of two and not half way in value. Nothing but zero becomes zero and nothing finite becomes NaR.
Sources: Posit Standard (2022), which fixes es = 2; Gustafson & Yonemoto 2017 for other es.
"""

from dataclasses import dataclass

import numpy as np

from narrowcast.errors import InputError
from narrowcast.formats.format import Layout
from narrowcast.formats.ladder import Beyond, Floats, Integers, Ladder, half_way, mirrored
from narrowcast.formats.tabulated import Tabulated


@dataclass(frozen=True)
class Posit(Tabulated):
    """A posit of ``width`` bits with at most ``es`` exponent bits.

    Attributes:
        name: e.g. ``"posit8_1"``.
        width: bits of one code, 2 to 16.
        es: bits of the exponent field at most, 0 to 3.
        flush: whether the nearest modes take what is below half the smallest value to zero, instead of to the smallest
            value as the standard does. The other modes treat the cell next to zero like any other.
    """

    name: str
    width: int
    es: int
    flush: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.width <= 16 and 0 <= self.es <= 3):
            raise InputError(
                f"format {self.name}: posits have 2 to 16 bits and 0 to 3 exponent bits, "
                f"found {self.width} and {self.es}; posit8_1 has 8 and 1"
            )

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return self.width

    @property
    def layout(self) -> Layout:
        """Sign, exponent and fraction where the regime is shortest."""
        fraction = max(0, self.width - 3 - self.es)
        note = "tapered: a regime of 2 bits or more comes first and pushes the others out"
        return Layout("posit", 1, min(self.es, max(0, self.width - 3)), fraction, "NaR (one NaN), no -0", note)

    @property
    def nan_code(self) -> int:
        """NaR."""
        return 1 << (self.width - 1)

    @property
    def beyond(self) -> Beyond:
        """Infinities become NaR; finite numbers saturate."""
        return Beyond(float("nan"), self.nan_code, self.nan_code)

    def ladder(self) -> Ladder:
        """Return the values, and as middles the posits with one bit more."""
        codes = np.arange(1 << (self.width - 1), dtype=np.int64)
        values = posit_values(codes, self.width, self.es)
        middles = posit_values(2 * codes[:-1] + 1, self.width + 1, self.es)
        ties = np.ones(middles.shape, dtype=np.bool_)
        if self.flush:
            middles[0] = half_way(values[:2])[0][0]
        else:
            middles[0], ties[0] = np.nextafter(0.0, 1.0), False
        return mirrored(Ladder(values, codes, middles, ties), lambda code: (1 << self.width) - code)


def posit_values(codes: Integers, width: int, es: int) -> Floats:
    """Return the values of non-negative posit codes, exactly, by counting the regime's run."""
    rest = width - 1
    ones = (codes >> (rest - 1)) & 1 == 1
    flipped = np.where(ones, ~codes & ((1 << rest) - 1), codes)
    run = rest - np.frexp(flipped.astype(np.float64))[1].astype(np.int64)  # leading zeros of what is left
    k = np.where(ones, run - 1, -run)
    left = np.maximum(rest - run - 1, 0)  # bits behind the regime
    tail = codes & ((1 << left) - 1)
    exponent = np.where(left >= es, tail >> np.maximum(left - es, 0), tail << np.maximum(es - left, 0))
    bits = np.maximum(left - es, 0)
    fraction = (tail & ((1 << bits) - 1)) / (1 << bits)
    values: Floats = np.where(codes == 0, 0.0, np.ldexp(1.0 + fraction, k * (1 << es) + exponent))
    return values
