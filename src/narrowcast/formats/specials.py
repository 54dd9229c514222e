"""The two ends of a minifloat: which codes are infinity and NaN, and what exponent field 0 means."""

from enum import Enum


class Specials(Enum):
    """Which codes are not finite numbers."""

    IEEE = "ieee"  # the top exponent: infinity, then NaNs
    FN = "fn"  # the all-ones magnitude is NaN; no infinity ("finite, NaN")
    FNUZ = "fnuz"  # the code of -0 is NaN, so zero is unsigned; no infinity
    P3109 = "p3109"  # infinity is the all-ones magnitude and NaN the code of -0; unsigned, NaN stands above infinity
    NONE = "none"  # every code is a finite number

    @property
    def words(self) -> str:
        """What there is beside finite numbers, for a table."""
        return {"ieee": "inf, nan", "fn": "nan", "fnuz": "nan, no -0", "p3109": "inf, nan, no -0"}.get(
            self.value, "none"
        )


class Bottom(Enum):
    """What exponent field 0 means."""

    SUBNORMAL = "subnormal"  # gradual underflow
    ZERO = "zero"  # no subnormals: all codes of that exponent but zero itself are unused, never produced
    NORMAL = "normal"  # an ordinary binade: the format has no zero (e8m0)
