"""Integers and fixed point: a uniform grid of k * 2**-fraction.

Two's complement codes. Symmetric formats (the default for quantization) leave the most negative code unused, so that
-x is representable whenever x is. ``fraction`` puts the binary point: MXINT8's element is ``q1.6``, an 8-bit integer
with 6 fractional bits (OCP MX v1.0). Values beyond the range saturate; there is no NaN, no infinity and no -0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.format import Format, Layout, add_and_subtract, draws_of, float32_of, to_fixed_point
from narrowcast.formats.rounding import NEAREST_EVEN, Rounding

_FIXED_POINT = 16  # fractional bits kept while rounding: one random draw; less where int32 is too short


@dataclass(frozen=True)
class Integer(Format):
    """An integer or fixed-point format of ``width`` bits.

    Attributes:
        name: e.g. ``"int8"``.
        width: bits of one code, 1 to 16.
        signed: two's complement if True, else 0 to 2**width - 1.
        symmetric: for signed formats, leave out -2**(width-1). A 1-bit signed format is {-1, 0} and never symmetric.
        fraction: fractional bits, 0 to 100; one step is 2**-fraction.
    """

    name: str
    width: int
    signed: bool = True
    symmetric: bool = True
    fraction: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 16:
            raise InputError(f"format {self.name}: integers have 1 to 16 bits, found {self.width}")
        if not 0 <= self.fraction <= 100:
            raise InputError(f"format {self.name}: expected 0 to 100 fractional bits, found {self.fraction}")
        if self.high == self.low:
            raise InputError(f"format {self.name}: one bit, signed and symmetric leaves only zero; use int1_full")

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return self.width

    @property
    def high(self) -> int:
        """Largest integer."""
        return (1 << (self.width - self.signed)) - 1

    @property
    def low(self) -> int:
        """Smallest integer."""
        if not self.signed:
            return 0
        return -self.high if self.symmetric else -self.high - 1

    @property
    def max(self) -> float:
        """Largest absolute value on the positive side (or the only side there is)."""
        return max(self.high, -self.low if self.high == 0 else 0) * self.smallest

    @property
    def smallest(self) -> float:
        """One step."""
        return 2.0**-self.fraction

    @property
    def smallest_normal(self) -> float:
        """One step: the grid is uniform."""
        return self.smallest

    @property
    def precision(self) -> int:
        """Mantissa bits behind the leading one at the top of the range."""
        return max(self.width - self.signed - 1, 0)

    @property
    def layout(self) -> Layout:
        """Sign and integer, with the binary point where it is not at the end."""
        note = f"{self.fraction} of them behind the binary point" if self.fraction else ""
        return Layout("integer", int(self.signed), mantissa=self.width - self.signed, note=note)

    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return two's complement codes; see `Format.encode`."""
        integers = self._to_integers(float32_of(x), rounding, draws_of(x, rounding, random)).nan_to_num(0.0).int()
        return (integers & ((1 << self.width) - 1)).to(self.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 values of ``codes``; the unused code of a symmetric format decodes to its value."""
        codes = codes.int()
        if self.signed:
            codes = codes - ((codes >> (self.width - 1)) << self.width)
        return codes.float() * self.smallest

    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the float32 values that ``x`` becomes; NaN stays NaN."""
        integers = self._to_integers(float32_of(x), rounding, draws_of(x, rounding, random))
        return integers.mul_(self.smallest) if self.fraction else integers

    def _to_integers(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Round to integers held in a new float32 tensor; NaN stays."""
        scaled = x * 2.0**self.fraction if self.fraction else x
        if rounding is NEAREST_EVEN:
            return add_and_subtract(scaled.clamp(self.low, self.high), 1.5 * 2.0**23)
        # One step of room beyond the range keeps every value that saturates beyond it whatever the mode.
        room = max(self.high, -self.low) + 1.0
        fraction = min(_FIXED_POINT, 30 - self.width)
        fixed = to_fixed_point(scaled.abs().clamp_max_(room).mul_(2.0**fraction), rounding)
        rounded = rounding(fixed, fraction, scaled.view(torch.int32) >> 31, random).float()
        nan = scaled.clamp(-1.0, 1.0).mul_(0.0).abs_()
        return rounded.copysign_(scaled).clamp_(self.low, self.high).add_(nan)
