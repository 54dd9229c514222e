"""A format reached through another rounding first: computing in bfloat16, or a rounding that is no mode of ours."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from narrowcast.formats import NEAREST_EVEN, Format, Layout, Rounding, format
from narrowcast.formats.format import FLOAT32_BIAS, FLOAT32_MAGNITUDE, FLOAT32_MANTISSA, float32_of
from narrowcast.formats.rounding import rounding as rounding_of


class First(Protocol):
    """What values pass through; a `Format` is one."""

    def round(self, x: Tensor) -> Tensor:
        """Return float32 values."""
        ...


@dataclass(frozen=True)
class Through(Format):
    """Values go through ``first`` and are then rounded to ``last``.

    Attributes:
        first: the format in which the scaled value is computed (double rounding, as hardware does it), or `Hybrid`.
        last: the format of the codes.
    """

    first: First
    last: Format

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names."""
        return f"{self.last}-through-{self.first}"

    @property
    def bits(self) -> int:
        """Width of one code."""
        return self.last.bits

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.last.max

    @property
    def smallest_normal(self) -> float:
        """Of the last format."""
        return self.last.smallest_normal

    @property
    def smallest(self) -> float:
        """Of the last format."""
        return self.last.smallest

    @property
    def precision(self) -> int:
        """Of the last format."""
        return self.last.precision

    @property
    def layout(self) -> Layout:
        """Of the last format."""
        return self.last.layout

    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``, rounded twice."""
        return self.last.encode(self.first.round(x), rounding, random)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of ``codes``."""
        return self.last.decode(codes)

    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the values that ``x`` becomes, rounded twice."""
        return self.last.round(self.first.round(x), rounding, random)


@dataclass(frozen=True)
class Hybrid:
    """HiFloat8's hybrid rounding: to nearest, ties away, between 1/8 and 16; outside, a value is its own noise.

    There the 14 bits F below the kept mantissa are compared with the 14 lowest bits T of the float32: the magnitude
    goes up where F > T, or as published F >= T, which moves exact values too (``strict=False``). Values that came from
    16 bits have T = 0 and always go up: the rule is for float32 data.
    Source: the Ascend cast specification (CAST_HYBRID), by way of sheet 27.
    """

    strict: bool = True

    def round(self, x: Tensor) -> Tensor:
        """Return values of HiFloat8, float32; what lies beyond them is infinite."""
        x = float32_of(x)
        near = format("hif8").round(x, rounding_of("nearest-away"))
        magnitude = x.view(torch.int32) & FLOAT32_MAGNITUDE
        exponent = (magnitude >> FLOAT32_MANTISSA) - FLOAT32_BIAS
        width = 1 + (exponent.abs() < 8).int() - (exponent <= -16).int()  # mantissa bits: 2, 1 or, of denormals, none
        shift = FLOAT32_MANTISSA - width
        noise = magnitude & 0x3FFF
        up = self._goes_up((magnitude >> (shift - 14)) & 0x3FFF, noise)
        value = (((magnitude >> shift) + up.int()) << shift).view(torch.float32)
        lowest = self._goes_up(1 << 13 | (magnitude >> 10) & 0x1FFF, noise)  # between 2**-23 and the smallest value
        value = torch.where(exponent == -23, torch.where(lowest, 2.0**-22, 0.0), value)
        value = torch.where(exponent < -23, 0.0, value)
        own = (exponent.abs() >= 4) & (exponent <= 15)
        return torch.where(own, format("hif8").round(value).copysign(x), near)

    def _goes_up(self, fraction: Tensor, noise: Tensor) -> Tensor:
        return fraction > noise if self.strict else fraction >= noise

    def __str__(self) -> str:
        return "hybrid" if self.strict else "hybrid-as-published"
