"""What kernels must know of a cast besides its element format: scale rule, rounding, transform, and the way to encode.

Frozen facts without names, so that equal facts share one compiled kernel. Nothing here imports Triton.
"""

import math
from dataclasses import dataclass

import numpy as np

from narrowcast.errors import InputError
from narrowcast.formats import NEAREST_EVEN, RANDOM_BITS, Format, Rounding
from narrowcast.kernels.elements import Facts, FloatFacts, element_of
from narrowcast.scaling import Narrow, One, PowerOfTwo, ScaleRule, TwoLevel, Wide
from narrowcast.scaling.scales import FLOAT32_MAX
from narrowcast.transforms import Hadamard


@dataclass(frozen=True)
class ScaleFacts:
    """A scale rule for one element format, with every constant it uses.

    Attributes:
        kind: ``one``, ``wide``, ``power``, ``narrow`` or ``two-level``.
        rule: of a power of two.
        maximum: largest value of the element format.
        divisor: what a tile's maximum is divided by: the largest value of the element format, less the headroom.
        top: floor(log2) of the largest value, less the headroom.
        top_mantissa: float32 mantissa field of the largest value.
        precision: mantissa bits of the element at the top of its range.
        numerator: max(element) * max(scale), of two levels.
        inverse_max: 1 / max(element).
    """

    kind: str
    rule: str
    maximum: float
    divisor: float
    top: int
    top_mantissa: int
    precision: int
    numerator: float
    inverse_max: float
    mode: str = "nearest-even"  # how scales are rounded to their format: the fields of `RoundingFacts` that count here
    overflow: str = "leaves"
    sticky: bool = True
    stale: bool = False  # whether maxima come from earlier steps, so that values may lie beyond them

    @property
    def bounded(self) -> bool:
        """Whether the scale brings every magnitude to the format's maximum at most, but for float32's own rounding."""
        if self.kind == "wide":
            return self.divisor == self.maximum and not self.stale
        fits = self.rule in ("ceil", "ceil-exponent") or (self.rule == "four-thirds" and self.top_mantissa >= 1 << 22)
        return self.kind == "power" and fits

    @property
    def inverse(self) -> float:
        """1 / divisor, rounded to float32."""
        return float(np.float32(1.0) / np.float32(self.divisor))

    @property
    def half(self) -> int:
        """Half a unit in the element's last place, of float32 mantissas."""
        return (1 << (23 - self.precision)) >> 1


@dataclass(frozen=True)
class RoundingFacts:
    """A rounding mode: its function by name (the kernels' twin of `Rounding.function`), and `Rounding`'s other fields.

    ``draw_bits`` of each draw count in the mode ``stochastic``.
    """

    mode: str
    overflow: str
    random: bool
    sticky: bool
    draw_bits: int = RANDOM_BITS

    @property
    def draw_mask(self) -> int:
        """The bits of a 16-bit draw that count: all, or the first few."""
        return 0xFFFF & -(1 << (RANDOM_BITS - self.draw_bits))


def rounding_of(mode: Rounding) -> RoundingFacts:
    """Return the facts of a rounding mode."""
    name, _, bits = mode.name.partition("-")
    if mode.random and bits.isdigit():
        return RoundingFacts(name, mode.overflow, mode.random, mode.sticky, int(bits))
    return RoundingFacts(mode.name, mode.overflow, mode.random, mode.sticky)


@dataclass(frozen=True)
class Way:
    """How elements of a cast are encoded; what is fast depends on format, rounding, scale and transform together.

    Attributes:
        kind: ``integer``; ``table``; ``adder``, where the float32 adder rounds to nearest even; ``dither``, random bits
            below the last kept bit of the rebased float32; ``rebased``, any mode on that float32's bits; ``general``.
        halves: whether two codes are moved into place at once: each lies in the upper half of its float32.
        bounded: whether no magnitude exceeds the format's maximum by more than rounding takes back, so none is cut.
        merged: whether the transform's factor and the scale are one multiplication (`scale.merged`).
    """

    kind: str
    halves: bool
    bounded: bool
    merged: bool


def way_of(
    element: "Facts", rounding: "RoundingFacts", scale: "ScaleFacts", rotation: "RotationFacts", pairs: bool
) -> Way:
    """Return the fastest way that gives the definition's bits; ``pairs``: on devices with minima of 16-bit pairs."""
    if not isinstance(element, FloatFacts):
        return Way(element.family, False, False, False)
    kind = "general"
    if element.adder and rounding.mode == "nearest-even":
        kind = "adder"
    elif element.plain and rounding.mode == "stochastic" and element.draw_shift >= 0:
        kind = "dither"
    elif element.plain and (not rounding.random or element.draw_shift >= 0):
        kind = "rebased"
    if kind not in ("adder", "dither") or scale.kind == "one":
        return Way(kind, False, False, False)
    bounded = scale.bounded and element.mantissa <= 4
    halves = element.mantissa <= 7 and element.bits in (4, 8) and not element.one_zero
    merged = rotation.size > 1 and scale.kind == "power" and scale.rule != "four-thirds" and element.movable
    return Way(kind, halves and (pairs or bounded or kind == "adder"), bounded, merged)


@dataclass(frozen=True)
class RotationFacts:
    """A Hadamard transform; its signs come as an argument of the kernel where there are any."""

    size: int
    signs: str
    factor: float

    @property
    def levels(self) -> int:
        """Stages of butterflies."""
        return self.size.bit_length() - 1


def rotation_of(transform: Hadamard | None) -> RotationFacts:
    """Return the facts of a transform; size 1 stands for none."""
    if transform is None:
        return RotationFacts(1, "none", 1.0)
    return RotationFacts(transform.size, transform.signs, 1 / math.sqrt(transform.size))


KINDS: dict[type[ScaleRule], str] = {
    One: "one",
    Wide: "wide",
    PowerOfTwo: "power",
    Narrow: "narrow",
    TwoLevel: "two-level",
}


def scale_facts(rule: ScaleRule, element: Format) -> ScaleFacts:
    """Return the facts of a scale rule; InputError for one without kernels."""
    if type(rule) not in KINDS:
        raise InputError(f"scale {rule}: no kernel for the rule {type(rule).__name__}")
    top = element.top_exponent
    of_scale = rule.format.max if isinstance(rule, TwoLevel) else 1.0
    return ScaleFacts(
        kind=KINDS[type(rule)],
        rule=rule.rule if isinstance(rule, PowerOfTwo) else "",
        maximum=element.max,
        divisor=element.max / 2.0 ** (rule.headroom if isinstance(rule, Wide) else 0),
        top=top - (rule.headroom if isinstance(rule, PowerOfTwo) else 0),
        top_mantissa=int((element.max / 2.0**top - 1) * (1 << 23)),
        precision=element.precision,
        numerator=min(element.max * of_scale, FLOAT32_MAX),
        inverse_max=1 / element.max,
        stale=rule.delayed is not None,
    )


def scale_format(rule: ScaleRule) -> Facts | None:
    """Return the facts of the format that scales are rounded to, or None."""
    return element_of(rule.format, NEAREST_EVEN) if isinstance(rule, Narrow | TwoLevel) else None
