"""HiFloat8: an 8-bit float whose mantissa tapers from three bits to none over 38 binades.

After the sign comes a prefix code (the *dot*) that says how wide the exponent is; the exponent is sign and magnitude
with its leading one left out; the mantissa has the bits that are left:

    11 -> 4 exponent bits, 1 of mantissa    10 -> 3 and 2    01 -> 2 and 3    001 -> 1 and 3    0001 -> 0 and 3
    0000 -> denormal: 2**(m - 23) for m = 1 to 7, without mantissa

The codes do not ascend with the values. 0x00 is the one zero, 0x80 the one NaN, 0x6f and 0xef are the infinities, in
the place of 1.5 * 2**15. The paper rounds to nearest with ties away from zero
(`nearest-away`; the preset ``hifloat8``) and gradients by the number's own last bits (`hybrid`, see `rounding`).
Source: "Ascend HiFloat8 Format for Deep Learning" (2024); the value table of the `en_dtypes` package.
"""

import math
from dataclasses import dataclass

import numpy as np

from narrowcast.formats.format import Layout
from narrowcast.formats.ladder import Beyond, Ladder, half_way, mirrored
from narrowcast.formats.tabulated import Tabulated

_SIGN, _INFINITY = 0x80, 0x6F
_RUNG = 1.5 * 2.0**15  # where infinity stands: from 1.25 * 2**15 on, nearest modes choose it
_NO_MANTISSA = -23


@dataclass(frozen=True)
class HiFloat8(Tabulated):
    """HiFloat8.

    Attributes:
        name: e.g. ``"hif8"``.
        saturate: whether values beyond the maximum, infinities too, become the maximum instead of infinity.
    """

    name: str = "hif8"
    saturate: bool = False

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return 8

    @property
    def layout(self) -> Layout:
        """Sign, and exponent and mantissa at their widest."""
        note = "tapered: a prefix of 2 to 4 bits tells the widths; 3 bits of mantissa from 1/8 to 15"
        return Layout("hifloat", 1, 4, 3, "inf, one nan, no -0", note)

    @property
    def nan_code(self) -> int:
        """The one NaN, in the place of -0."""
        return _SIGN

    @property
    def beyond(self) -> Beyond | None:
        """The infinities, unless the format saturates."""
        return None if self.saturate else Beyond(math.inf, _INFINITY, _SIGN | _INFINITY, _RUNG)

    @property
    def duplicates(self) -> dict[int, float]:
        """The infinities, where they are never written."""
        return {_INFINITY: math.inf, _SIGN | _INFINITY: -math.inf} if self.saturate else {}

    @property
    def smallest_normal(self) -> float:
        """2**-15: what lies below has no mantissa."""
        return 2.0**-15

    @property
    def precision(self) -> int:
        """Mantissa bits in the top binade."""
        return 1

    def ladder(self) -> Ladder:
        """Return the values; cells are halved in value."""
        by_value = sorted((magnitude(code), code) for code in range(_SIGN) if code != _INFINITY)
        values, codes = np.array([v for v, _ in by_value]), np.array([c for _, c in by_value])
        return mirrored(Ladder(values, codes, *half_way(values)), lambda code: code | _SIGN)


def magnitude(code: int) -> float:
    """Return the value of a code without its sign (0 to 127), infinity read as the number whose place it takes."""
    for dot, width, exponent_bits in ((0b11, 2, 4), (0b10, 2, 3), (0b01, 2, 2), (0b001, 3, 1), (0b0001, 4, 0)):
        rest = 7 - width
        if code >> rest == dot:
            mantissa_bits = rest - exponent_bits
            field, mantissa = code >> mantissa_bits & ((1 << exponent_bits) - 1), code & ((1 << mantissa_bits) - 1)
            return math.ldexp(1 + mantissa / (1 << mantissa_bits), _exponent(field, exponent_bits))
    return math.ldexp(1.0, code + _NO_MANTISSA) if code else 0.0


def _exponent(field: int, bits: int) -> int:
    """Read an exponent: a sign, then a magnitude whose leading one is not stored."""
    if bits == 0:
        return 0
    leading = 1 << (bits - 1)
    size = leading | (field & (leading - 1))
    return -size if field & leading else size
