"""What kernels must know of an element format, as frozen facts without names: equal facts share one compiled kernel.

A `Minifloat` becomes a `FloatFacts`, an `Integer` an `IntegerFacts`, a format known by its values a `TableFacts`.
Nothing here imports Triton.
"""

from dataclasses import dataclass
from math import lcm

import torch

from narrowcast.errors import InputError
from narrowcast.formats import Bottom, Format, Integer, Minifloat, Rounding, Specials
from narrowcast.formats.lookup import lookup, slots
from narrowcast.formats.tabulated import Tabulated
from narrowcast.scaling.scales import FLOAT32_MAX

WORD = 32


def top_aligned(code: int, bits: int) -> int:
    """Return ``code`` in the leading bits of an int32."""
    return as_int32(code << (WORD - bits))


def as_int32(word: int) -> int:
    """Return the signed number with the low 32 bits of ``word``."""
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


def poison_words(code: int, bits: int) -> tuple[int, ...]:
    """Return the words (int32) that a run of one ``code`` fills, over one period."""
    period = lcm(bits, WORD)
    stream = sum(code << position for position in range(0, period, bits))
    return tuple(as_int32(stream >> position) for position in range(0, period, WORD))


@dataclass(frozen=True)
class FloatFacts:
    """A minifloat's fields and what follows from them; codes are -1 where there is none."""

    bits: int
    exponent: int
    mantissa: int
    bias: int
    max: float
    max_code: int
    inf_code: int
    nan_code: int
    top_exponent: int
    signed: bool
    one_zero: bool
    saturate: bool
    bottom: str
    prefix: bool
    family: str = "float"

    @property
    def sign_bit(self) -> int:
        """The sign in a plain code."""
        return as_int32(1 << (self.bits - 1))

    @property
    def invalid_code(self) -> int:
        """What an unsigned format makes of a negative value."""
        return max(self.nan_code, 0)

    @property
    def beyond_code(self) -> int:
        """What lies beyond the maximum where values do not saturate."""
        return self.inf_code if self.inf_code >= 0 else self.nan_code

    @property
    def positive_nan(self) -> int:
        """Top-aligned code of a positive NaN; 0 in formats without one."""
        return top_aligned(max(self.nan_code, 0), self.bits)

    @property
    def negative_nan(self) -> int:
        """Top-aligned code of a negative NaN."""
        marked = self.nan_code >= 0 and not self.one_zero
        return top_aligned(max(self.nan_code, 0) | (self.sign_bit if marked else 0), self.bits)

    @property
    def poison(self) -> tuple[int, ...]:
        """Words of codes of a poisoned tile, as int32, over one period."""
        return poison_words(max(self.nan_code, 0), self.bits)

    @property
    def anchored(self) -> bool:
        """Whether the float32 adder rounds to nearest even on this grid: subnormals, and room for an anchor."""
        room = 1 <= self.mantissa <= 20 and self.top_exponent + 24 - self.mantissa < 127
        return room and self._rebases

    @property
    def plain(self) -> bool:
        """Signed, saturating, and the leading bits of a rebased float32."""
        return self.signed and self.saturate and self._rebases

    @property
    def adder(self) -> bool:
        """Both of these."""
        return self.anchored and self.plain

    @property
    def movable(self) -> bool:
        """Whether rounding still works on values moved by 2**-127 to 2**17 (`scale.merged`)."""
        return self.anchored and self.shift + self.low_field > 127 and self.bias + self.mantissa <= 40

    @property
    def _rebases(self) -> bool:
        return self.bottom == "subnormal" and not self.prefix and self.bias >= 0

    @property
    def shift(self) -> int:
        """Bits of a float32 mantissa below the last one kept."""
        return 23 - self.mantissa

    @property
    def half_limit(self) -> int:
        """The largest code with any bits below it, in the upper half of a rebased float32: in both halves of a word."""
        limit = ((self.max_code + 1) << (7 - self.mantissa)) - 1
        return limit << 16 | limit

    @property
    def draw_shift(self) -> int:
        """Where a 16-bit draw lies below a rebased float32's last kept bit; negative where there is no room."""
        return self.shift - 16 if self.exponent + self.mantissa <= 14 else -1

    @property
    def fraction(self) -> int:
        """Fractional bits of a code while it is rounded the general way."""
        return min(16, 30 - self.exponent - self.mantissa)

    @property
    def rebase(self) -> float:
        """What takes this format's values to the float32 whose exponent field is theirs."""
        return 2.0 ** (self.bias - 127)

    @property
    def unbase(self) -> float:
        """The inverse of `rebase`."""
        return 2.0 ** (127 - self.bias)

    @property
    def anchor_step(self) -> int:
        """From a power of two to its anchor, at which float32's step is this format's: float32 bits, to be added."""
        return self.shift << 23

    @property
    def anchor_least(self) -> int:
        """Anchor of the smallest normal value, whose binade also sets the step of subnormals: float32 bits."""
        return (self.shift + self.low_field) << 23

    @property
    def carries(self) -> bool:
        """Whether rounding up the largest value gives infinity's code by itself (bfloat16)."""
        return self.prefix and self.exponent == 8 and self.signed and not self.saturate

    @property
    def low_field(self) -> int:
        """float32's exponent field of the smallest normal value; below 1 where that is subnormal there."""
        return 128 - self.bias

    @property
    def steps_exponent(self) -> int:
        """Exponent of the factor to fixed point, before the value's own exponent field is taken off."""
        return 127 + self.mantissa + self.fraction

    @property
    def far(self) -> bool:
        """Whether that factor can exceed 2**127, and takes two multiplications."""
        return self.mantissa + self.fraction + self.bias > 128

    @property
    def ceiling(self) -> float:
        """Where magnitudes are cut before rounding, so that codes stay small."""
        return float(min(2.0 ** (self.top_exponent + 1), FLOAT32_MAX))

    @property
    def subnormal_codes(self) -> int:
        """Codes below which float32 has no normal or the format has subnormals."""
        return (2 if self.bias > 127 else 1) << self.mantissa

    @property
    def sub_step(self) -> float:
        """One step of the subnormals."""
        return 2.0 ** (1 - self.bias - self.mantissa)


@dataclass(frozen=True)
class IntegerFacts:
    """An integer or fixed-point format's fields."""

    bits: int
    low: int
    high: int
    steps: float
    max: float
    family: str = "integer"
    nan_code: int = -1
    positive_nan: int = 0
    poison: tuple[int, ...] = (0,)

    @property
    def fraction(self) -> int:
        """Fractional bits of an integer while it is rounded the general way."""
        return min(16, 30 - self.bits)

    @property
    def fraction_steps(self) -> float:
        """Steps of the fixed point to one integer."""
        return 2.0**self.fraction

    @property
    def lowest(self) -> float:
        """`low` as float."""
        return float(self.low)

    @property
    def highest(self) -> float:
        """`high` as float."""
        return float(self.high)


@dataclass(frozen=True)
class TableFacts:
    """A format known by its values; the tables themselves are arguments of a kernel (`kernels.table`)."""

    bits: int
    poison_code: int
    doublings: int
    entries: bool
    family: str = "table"

    @property
    def positive_nan(self) -> int:
        """Top-aligned code of a positive NaN; of zero in formats without one."""
        return top_aligned(self.poison_code, self.bits)

    @property
    def poison(self) -> tuple[int, ...]:
        """Words of codes of a poisoned tile, as int32, over one period."""
        return poison_words(self.poison_code, self.bits)


Facts = FloatFacts | IntegerFacts | TableFacts


def element_of(fmt: Format, mode: Rounding) -> Facts:
    """Return the facts of a format, which is rounded by ``mode``; InputError for a family without kernels."""
    if isinstance(fmt, Tabulated):
        doublings = lookup(fmt, mode, torch.float32, torch.device("cpu")).doublings
        poison = int(slots(fmt, torch.device("cpu")).codes[-1])
        return TableFacts(fmt.bits, poison, doublings, entries=doublings <= 1 and not mode.random)
    if isinstance(fmt, Minifloat):
        return FloatFacts(
            bits=fmt.bits,
            exponent=fmt.exponent,
            mantissa=fmt.mantissa,
            bias=fmt.bias,
            max=fmt.max,
            max_code=fmt.max_code,
            top_exponent=fmt.top_exponent,
            signed=fmt.signed,
            one_zero=not fmt.signed or fmt.specials in (Specials.FNUZ, Specials.P3109),
            saturate=fmt.saturate or fmt.specials is Specials.NONE,
            bottom=fmt.bottom.value,
            prefix=fmt.bias == 127 and fmt.bottom is Bottom.SUBNORMAL,
            inf_code=-1 if fmt.inf_code is None else fmt.inf_code,
            nan_code=-1 if fmt.nan_code is None else fmt.nan_code,
        )
    if isinstance(fmt, Integer):
        return IntegerFacts(fmt.bits, fmt.low, fmt.high, 2.0**fmt.fraction, fmt.max)
    raise InputError(f"format {fmt}: no kernel for the family {type(fmt).__name__}")
