"""What every number format can do, whatever its family.

A format is a finite set of real numbers with a code for each. It is a frozen value: every fact (largest value, count
of codes) is derived from its few fields. All formats here have at most 24 significant bits and fit float32's range, so
float32 holds each of their values exactly.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.rounding import NEAREST_EVEN, Rounding, rounding

FLOAT32_SIGN = -(1 << 31)
FLOAT32_MAGNITUDE = 0x7FFFFFFF
FLOAT32_MANTISSA = 23
FLOAT32_BIAS = 127


@dataclass(frozen=True)
class Layout:
    """What the bits of a code are for, for tables and pages.

    Attributes:
        family: ``"minifloat"``, ``"integer"``, ...
        sign: 1 if the format has negative values, else 0.
        exponent, mantissa: bits of each field, at most; None where there is no such field.
        specials: which values are not finite numbers, e.g. ``"inf, nan"``; ``"none"``.
        note: what the fields leave unsaid, e.g. how wide a tapered field is where; may be empty.
    """

    family: str
    sign: int
    exponent: int | None = None
    mantissa: int | None = None
    specials: str = "none"
    note: str = ""


class Format(ABC):
    """A number format: which values exist, and the code of each.

    Fields of every member: ``name`` and ``bits`` (width of a code, 1 to 32). Codes are unsigned integers held in
    ``uint8`` up to 8 bits and in ``int32`` beyond.
    """

    name: str

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width of one code in bits."""

    @property
    @abstractmethod
    def max(self) -> float:
        """Largest finite value."""

    @property
    @abstractmethod
    def smallest_normal(self) -> float:
        """Smallest positive value that is not subnormal."""

    @property
    @abstractmethod
    def smallest(self) -> float:
        """Smallest positive value."""

    @property
    @abstractmethod
    def precision(self) -> int:
        """Mantissa bits behind the leading one at the top of the range (0 for e8m0, 1 for e2m1fn, 6 for int8)."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """What the bits of a code are for."""

    @abstractmethod
    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the codes of ``x`` (any shape, any float dtype), rounded once from its own precision.

        ``random``: int32 draws of 16 bits, one per element, for the stochastic modes. A NaN that the format cannot
        hold gets the code of zero; `round` keeps it visible, and a scaled cast poisons its tile.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of ``codes`` (any integer dtype) as float32."""

    @abstractmethod
    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the float32 values that ``x`` becomes: ``decode(encode(x))``, with NaN kept as NaN."""

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values next to ``x`` (any shape, any float dtype) on either side, float32: (below, above).

        Both are ``x`` itself where it is a value of the format. Beyond the range they are what `round` makes of it
        downwards and upwards: the last value twice, or the last value and the way out (infinity, NaN).
        """
        return self.round(x, rounding("down")), self.round(x, rounding("up"))

    @property
    def top_exponent(self) -> int:
        """floor(log2(max)): the `emax` of the OCP MX specification."""
        return math.frexp(self.max)[1] - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """Integer dtype that holds one code."""
        return torch.uint8 if self.bits <= 8 else torch.int32

    def codes(self) -> Tensor:
        """Return every code, ascending; refused beyond 16 bits (it would list billions)."""
        if self.bits > 16:
            raise InputError(f"format {self.name} has 2**{self.bits} codes: too many to list (at most 16 bits)")
        return torch.arange(1 << self.bits).to(self.code_dtype)

    def values(self) -> Tensor:
        """Return all finite values, each once, ascending, float64; those of unused codes are left out."""
        values = self.decode(self.codes())
        values = values[self.round(values) == values]
        distinct: Tensor = torch.unique(values[torch.isfinite(values)].double() + 0.0)
        return distinct

    def facts(self) -> dict[str, Any]:
        """Return name, width, fields and range as plain JSON values."""
        ends = {"max": self.max, "smallest_normal": self.smallest_normal, "smallest": self.smallest}
        return {"name": self.name, "bits": self.bits, **vars(self.layout), **ends}

    def __str__(self) -> str:
        return self.name


def float32_of(x: Tensor) -> Tensor:
    """Return ``x`` as float32, ready to be rounded once more without rounding twice.

    16-bit floats and float32 convert exactly; but a GPU drops the sign of a float16 NaN, here and in kernels alike.
    float64 is rounded *to odd* (the last bit remembers whether anything was cut off), after which any rounding to 22
    bits or fewer gives what it would have given from float64 (Boldo & Melquiond, "When double rounding is odd", 2005).
    Finite float64 values never become infinite.
    """
    if x.dtype == torch.float32:
        return x
    if x.dtype in (torch.bfloat16, torch.float16):
        return x.float()
    if x.dtype != torch.float64:
        raise InputError(f"cannot round a tensor of dtype {x.dtype}: expected a float dtype; convert it first")
    near = x.float()
    bits = near.view(torch.int32)
    magnitude = bits & FLOAT32_MAGNITUDE
    # Truncate: step back where conversion went away from zero; then set the last bit where anything was lost.
    truncated = magnitude - (near.double().abs() > x.abs()).int()
    odd = truncated | (truncated.view(torch.float32).double() != x.abs()).int()
    kept = torch.where(x.isfinite(), odd, magnitude)
    return (kept | (bits & FLOAT32_SIGN)).view(torch.float32)


def draws_of(x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor | None:
    """Return the draws to round ``x`` with: those given, or those that the mode takes from ``x`` itself."""
    return random if rounding.dither is None else rounding.dither(float32_of(x))


def float32_once(x: Tensor, mantissa: int, rounding: Rounding, random: Tensor | None) -> Tensor:
    """Return ``x`` as float32, ready to be rounded to ``mantissa`` bits as if from its own precision.

    That is `float32_of`, except for float64 and formats of 22 or 23 bits, which leave its last bit no room: they are
    rounded here. The float64's own bits are the fixed point, below float32's normals a count of the smallest step.
    """
    if x.dtype != torch.float64 or mantissa < FLOAT32_MANTISSA - 1:
        return float32_of(x)
    shift = 52 - mantissa
    magnitude = x.view(torch.int64) & 0x7FFFFFFFFFFFFFFF
    sign = (x.view(torch.int64) >> 63).int()
    normal = (magnitude - ((1023 - FLOAT32_BIAS) << 52)).clamp_max_(0xFF << 52)
    steps = x.abs().clamp_max_(1.0).mul_(2.0 ** (FLOAT32_BIAS - 1 + mantissa + shift)).nan_to_num_(0.0)
    low = steps.long()
    low |= ((low.double() != steps) & rounding.sticky).long()
    code = rounding(torch.where(normal < 1 << 52, low, normal), shift, sign, random)
    beyond = 0xFF << mantissa
    stays = (code >= beyond) & ~rounding.leaves(sign) & ~x.isinf()
    code = torch.where(stays, beyond - 1, code).int() << (FLOAT32_MANTISSA - mantissa)
    return torch.where(x.isnan(), float("nan"), (code | (sign & FLOAT32_SIGN)).view(torch.float32))


def add_and_subtract(x: Tensor, anchor: Tensor | float) -> Tensor:
    """Round ``x`` in place to nearest even on a power-of-two step, by letting the float32 adder do it.

    ``anchor`` is 1.5 * 2**23 * step: the sum lies in a binade whose last bit is worth one step, for either sign, so
    the addition itself rounds and the subtraction is exact. Needs abs(x) < 2**22 steps. Two passes where
    divide-round-multiply takes three and a slower instruction (measured: 2.6x against 3.7x of a clone at 16M
    elements). Every zero comes out as +0.
    """
    return x.add_(anchor).sub_(anchor)


def to_fixed_point(x: Tensor, rounding: Rounding) -> Tensor:
    """Return ``floor(x)`` as int32, 0 <= x < 2**31, ready for ``rounding``.

    The last bit is set where anything was cut off (*sticky*), so that no mode mistakes a value for a tie or an exact
    one. Modes that count draws get the plain floor: a value must not go up more often than its fraction.
    Written with shifts: comparisons and `where` cost 6 and 35 times an addition on a CPU (1M elements, eager).
    """
    floor = x.int()
    if not rounding.sticky:
        return floor
    return floor.bitwise_or_((floor - x).view(torch.int32).bitwise_right_shift_(31).bitwise_and_(1))
