"""How a tile's largest magnitude becomes its scale.

A scale always multiplies to get back: ``x ~ value * scale``. A rule turns ``amax`` (float32, one per tile) into a
`Scale`: what is stored, what multiplies back, and what multiplies in. The same edges hold for every rule:

- amax = 0: the scale is 1 (a two-level block stores 0): every code of the tile is zero.
- amax NaN or infinite: the scale is NaN and the whole tile decodes to NaN. A non-finite value is never hidden.
- amax subnormal: float32 scales stop at 2**-126 and e8m0 at 2**-127, so the reciprocal stays finite; what is smaller
  underflows to zero codes. Reciprocals of narrow-float scales are capped at float32's maximum (TransformerEngine).
- amax = float32's maximum: no scale overflows. A value whose nearest grid point lies beyond float32 (2**128, only
  near that maximum) decodes to infinity, as it must.

Sources: OCP MX v1.0, 6.3 (floor); formats-reference, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError, nearest
from narrowcast.formats import Format, Minifloat, format
from narrowcast.formats.format import FLOAT32_BIAS, FLOAT32_MANTISSA
from narrowcast.scaling.history import Delayed
from narrowcast.scaling.rule import Scale, ScaleRule
from narrowcast.scaling.second_level import SecondLevel

FLOAT32_MAX = torch.finfo(torch.float32).max
SMALLEST = 2.0**-126


def divided(dividend: Tensor | float, divisor: Tensor | float) -> Tensor:
    """Return the correctly rounded float32 quotient, the same on every device.

    With a number on either side torch multiplies by a reciprocal instead (``number / tensor`` everywhere, ``tensor /
    number`` on CUDA), which is another rounding and now and then another last bit.
    """
    if isinstance(dividend, Tensor):
        return dividend / torch.full_like(dividend, float(divisor))
    assert isinstance(divisor, Tensor)
    return torch.full_like(divisor, dividend) / divisor


def poisoned(scale: Tensor, amax: Tensor) -> Tensor:
    """Return ``scale`` with NaN where ``amax`` is not finite."""
    return torch.where(amax.isfinite(), scale, float("nan"))


@dataclass(frozen=True)
class One(ScaleRule):
    """No scale: the format sees the values as they are (bfloat16, float16, float32)."""

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return ones."""
        one = torch.ones_like(amax)
        return Scale(one, (), one)

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Nothing multiplies back."""
        return ()

    @property
    def bits(self) -> int:
        """Nothing is stored."""
        return 0

    @property
    def needs_amax(self) -> bool:
        """The data decide nothing."""
        return False

    def __str__(self) -> str:
        return "one"


@dataclass(frozen=True)
class Wide(ScaleRule):
    """A float32 scale, amax / max(element), with current or delayed amax.

    ``into`` is the float32 reciprocal of the float32 scale: two roundings, the same on every device.

    Attributes:
        history: amax history, or None for the current amax.
        headroom: how many binades the top of the format stands above amax: posits and HiFloat8 are finest around 1, far
            below their maximum.
    """

    history: Delayed | None = None
    headroom: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.headroom <= 126 or (self.headroom and self.history):
            raise InputError(f"scale fp32: expected a headroom of 0 to 126 without a history, found {self.headroom}")

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return float32 scales."""
        scale = divided(amax, element.max / 2.0**self.headroom).clamp(SMALLEST, FLOAT32_MAX)
        scale = poisoned(torch.where(amax == 0, 1.0, scale), amax)
        return Scale(scale, (scale,), scale.reciprocal())

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """The stored scale multiplies back."""
        return (stored,)

    @property
    def bits(self) -> int:
        """One float32."""
        return 32

    @property
    def delayed(self) -> Delayed | None:
        """The amax history in use."""
        return self.history

    def __str__(self) -> str:
        if self.history is not None:
            return "fp32-" + str(self.history)
        return f"fp32-headroom{self.headroom}" if self.headroom else "fp32"


def _exponent_and_mantissa(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32's exponent (int32, floor(log2 x); -127 below 2**-126) and mantissa field."""
    bits = x.view(torch.int32)
    return (bits >> FLOAT32_MANTISSA) - FLOAT32_BIAS, bits & ((1 << FLOAT32_MANTISSA) - 1)


def _floor(amax: Tensor, element: Format) -> Tensor:
    """OCP MX v1.0: floor(log2 amax) - emax. The maximum may saturate."""
    return _exponent_and_mantissa(amax)[0] - element.top_exponent


def _ceil(amax: Tensor, element: Format) -> Tensor:
    """ceil(log2(amax / max)), exactly: the smallest power of two at which nothing saturates (NVIDIA)."""
    exponent, mantissa = _exponent_and_mantissa(amax)
    top, top_mantissa = _exponent_and_mantissa(torch.tensor(element.max))
    return exponent - int(top) + (mantissa > int(top_mantissa)).int()


def _ceil_exponent(amax: Tensor, element: Format) -> Tensor:
    """ceil(log2 amax) - emax (torchao's CEIL)."""
    exponent, mantissa = _exponent_and_mantissa(amax)
    return exponent + (mantissa > 0).int() - element.top_exponent


def _even(amax: Tensor, element: Format) -> Tensor:
    """Floor after rounding amax half up to the element's mantissa (torchao's EVEN)."""
    half = (1 << (FLOAT32_MANTISSA - element.precision)) >> 1
    return ((amax.view(torch.int32) + half) >> FLOAT32_MANTISSA) - FLOAT32_BIAS - element.top_exponent


def _three_quarters(amax: Tensor, element: Format) -> Tensor:
    """Up from 1.75 times a power of two on, whatever the element (compressed-tensors' MX scales)."""
    exponent, mantissa = _exponent_and_mantissa(amax)
    return exponent + (mantissa >= 0x600000).int() - element.top_exponent


def _nearest(amax: Tensor, element: Format) -> Tensor:
    """The power of two nearest to amax / 2**emax in the logarithm: up from sqrt(2) on."""
    exponent, mantissa = _exponent_and_mantissa(amax)
    return exponent + (mantissa >= 0x3504F4).int() - element.top_exponent  # 1.sqrt2 in 23 bits, rounded up


@dataclass(frozen=True)
class PowerOfTwo(ScaleRule):
    """An e8m0 scale, by a named rule.

    Tools that say "MXFP4" disagree here, so the rule has a name: ``floor`` (OCP), ``ceil`` (NVIDIA), ``ceil-exponent``,
    ``even`` (torchao), ``nearest``, ``three-quarters`` (compressed-tensors; for E2M1 the same as ``even``), and
    ``four-thirds``: floor, with 4/3 as a constant multiplier
    beside the stored power of two, so that nothing saturates (3/4 of the range [2**emax, 2**(emax+1)) fits any element
    whose maximum is 1.5 * 2**emax or more; Tseng et al. 2025, "Training LLMs with MXFP4").
    """

    rule: str = "floor"
    headroom: int = 0  # binades, as in `Wide`: posit8_1 with 11 has its largest magnitudes in [2, 4)

    def __post_init__(self) -> None:
        if self.rule not in _EXPONENTS:
            raise InputError(f"unknown e8m0 rule {self.rule!r}{nearest(self.rule, _EXPONENTS)}")
        if not 0 <= self.headroom <= 126:
            raise InputError(f"scale e8m0: expected a headroom of 0 to 126, found {self.headroom}")

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return e8m0 codes and their powers of two."""
        exponent = _EXPONENTS[self.rule](amax, element) + self.headroom
        exponent = exponent.clamp(-FLOAT32_BIAS, FLOAT32_BIAS)
        exponent = torch.where(amax == 0, 0, exponent)
        code = torch.where(amax.isfinite(), exponent + FLOAT32_BIAS, 255).to(torch.uint8)
        back = self.restore(code, None)
        into = format("e8m0").decode(torch.where(code == 255, 255, 254 - code.int()))
        return Scale(code, back, into * 0.75 if self.rule == "four-thirds" else into)

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Decode the powers of two."""
        power = format("e8m0").decode(stored)
        return (power * torch.tensor(self.constant),) if self.constant != 1.0 else (power,)

    @property
    def constant(self) -> float:
        """What multiplies every stored power of two."""
        return 4 / 3 if self.rule == "four-thirds" else 1.0

    @property
    def bits(self) -> int:
        """One e8m0 code."""
        return 8

    def __str__(self) -> str:
        rule = "" if self.rule == "floor" else f"-{self.rule}"
        return f"e8m0{rule}" + (f"-headroom{self.headroom}" if self.headroom else "")


_EXPONENTS: dict[str, Callable[[Tensor, Format], Tensor]] = {
    "floor": _floor,
    "ceil": _ceil,
    "ceil-exponent": _ceil_exponent,
    "even": _even,
    "nearest": _nearest,
    "three-quarters": _three_quarters,
    "four-thirds": _floor,
}


@dataclass(frozen=True)
class Narrow(ScaleRule):
    """A scale in a narrow float (e4m3fn, ue5m3): amax / max(element), rounded to nearest even, saturating."""

    format: Minifloat

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return codes of the scale format; a scale that rounds to 0 flushes its tile."""
        exact = divided(amax, element.max).clamp_max(self.format.max)
        value = self.format.round(torch.where(amax == 0, 1.0, exact))
        value = poisoned(value, amax)
        return Scale(self.format.encode(value), (value,), value.reciprocal().clamp_max(FLOAT32_MAX))

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Decode the scales."""
        return (self.format.decode(stored),)

    @property
    def bits(self) -> int:
        """One code of the scale format."""
        return self.format.bits

    def __str__(self) -> str:
        return self.format.name


@dataclass(frozen=True)
class TwoLevel(SecondLevel):
    """NVFP4's two levels: a narrow-float scale per tile under one float32 scale per tensor.

    An infinity or a NaN anywhere makes the tensor's scale NaN, and with it every tile.

    The order of operations is TransformerEngine's, so that codes agree bit for bit (formats-reference, section 3):
    encode = max(element) * max(scale) / amax_tensor; block = round(amax * (encode * (1 / max(element)))).
    """

    format: Minifloat

    def __post_init__(self) -> None:
        self.check_range()

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return block codes and the tensor's scale; a block far below the tensor's maximum flushes to zero."""
        whole = amax.amax() if amax.numel() else amax.sum()
        encode = divided(min(element.max * self.format.max, FLOAT32_MAX), whole).clamp_max(FLOAT32_MAX)
        encode = poisoned(torch.where(whole == 0, 1.0, encode), whole)
        decode = encode.reciprocal()
        exact = (amax * (encode * torch.tensor(1 / element.max))).clamp_max(self.format.max)
        block = poisoned(self.format.round(exact), amax)
        into = (block * decode).reciprocal().clamp_max(FLOAT32_MAX)
        return Scale(self.format.encode(block), (block, decode), into, tensor=decode)

    def factors(self, values: Tensor, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the block scales; the tensor's scale follows."""
        return values, tensor

    def __str__(self) -> str:
        return f"{self.format.name}+fp32"
