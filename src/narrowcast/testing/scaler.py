"""How blocks are scaled and rounded, one habit at a time: the twin of `rounder` where elements share scales.

Blocks are rows here, ``[n, size]``, whatever the tile. A `Scaler` says which scale a block gets, how it goes in and
comes out again, and, with the `Rounder` inside it, what becomes of the scaled elements.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from narrowcast.formats import Format, format
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, PowerOfTwo, Scale, ScaleRule, TwoLevel, Wide
from narrowcast.testing import habits
from narrowcast.testing.rounder import Choice, Rounder
from narrowcast.testing.rules import Rule, clamped, counted, infinite, largest, poisoned, rules

Peak = Callable[[Tensor], Tensor]  # blocks -> amax [n, 1]
Infinite = Callable[[Rule, Tensor, Format], Scale]  # a rule, applied where amax may be infinite
Through = Callable[[Tensor, Scale], Tensor]  # blocks or values, through the scale


@dataclass(frozen=True)
class Outcome:
    """What a `Scaler` makes of blocks.

    Attributes:
        scales: value of each block's stored scale, float64 ``[n]``.
        tensor: the scale of the whole tensor, or None.
        values: element values, before the scale multiplies back, float32 ``[n, size]``.
        dequantized: after, float32 ``[n, size]``.
    """

    scales: Tensor
    tensor: Tensor | None
    values: Tensor
    dequantized: Tensor


_PEAK: Choice[Peak] = Choice("amax of all values", lambda blocks: blocks.abs().amax(-1, keepdim=True))
_INFINITE: Choice[Infinite] = Choice("a block that is not finite has a NaN for its scale", poisoned)
_INTO: Choice[Through] = Choice("times the scale's reciprocal", lambda blocks, scale: blocks * scale.into)
_BACK: Choice[Through] = Choice("scales multiplied back one by one", lambda values, scale: scale.apply(values.clone()))
_EMPTY: Choice[float | None] = Choice("a block of zeros has the rule's scale", None)


@dataclass(frozen=True)
class Scaler:
    """A rounder of elements and a scale rule, with a habit in each slot.

    Attributes:
        element: how scaled elements are rounded.
        rule: how amax becomes a scale.
        peak: which values amax is taken of.
        infinite: what an infinite amax does.
        into, back: how the scale goes in, and how it comes out.
        empty: the scale of a block of zeros; None: what the rule says.
    """

    element: Rounder
    rule: Choice[Rule]
    peak: Choice[Peak] = _PEAK
    infinite: Choice[Infinite] = _INFINITE
    into: Choice[Through] = _INTO
    back: Choice[Through] = _BACK
    empty: Choice[float | None] = _EMPTY

    def outcome(self, blocks: Tensor, scale_format: Format | None) -> Outcome:
        """Return what becomes of float32 ``blocks``, whose scales are stored in ``scale_format`` (None: float32)."""
        amax = self.peak.value(blocks)
        scale = self.infinite.value(self.rule.value, amax, self.element.format.value)
        values = self.element.values(self.into.value(blocks, scale))
        stored = (scale_format.decode(scale.stored) if scale_format else scale.stored).flatten().double()
        if self.empty.value is not None:
            stored = torch.where(amax.flatten() == 0, self.empty.value, stored)
        return Outcome(stored, scale.tensor, values, self.back.value(values, scale))


def scaler(cast: Cast) -> Scaler:
    """Return the scaler that does as ``cast`` says."""
    return Scaler(habits.rounder(cast.format, cast.rounding), rules(cast.scale)[0])


def scale_format(rule: ScaleRule) -> Format | None:
    """Return the format that ``rule`` stores its scales in; None is float32."""
    if isinstance(rule, PowerOfTwo):
        return format("e8m0")
    return rule.format if isinstance(rule, Narrow | TwoLevel) else None


def neighbours(cast: Cast, empties: Sequence[float] = ()) -> Callable[[Scaler], Iterator[tuple[str, Scaler]]]:
    """Return the function from a scaler to those that differ in one slot.

    ``empties``: scales that the foreign function was seen to give to blocks of zeros.
    """
    choices: dict[str, tuple[Choice[Any], ...]] = {
        "rule": rules(cast.scale),
        "peak": (_PEAK, *_PEAKS),
        "infinite": (_INFINITE, *_infinites(cast.scale)),
        "into": (_INTO, *_INTOS),
        "back": (_BACK, *_BACKS),
        "empty": (_EMPTY, *(Choice(f"a block of zeros has the scale {_number(scale)}", scale) for scale in empties)),
    }

    elements = habits.neighbours(cast.format)

    def all_of(start: Scaler) -> Iterator[tuple[str, Scaler]]:
        for choice in choices["rule"]:  # a rule that is meant for division gains little without it: both at once
            yield "rule", replace(start, rule=choice, into=_INTOS[0])
        for slot, options in choices.items():
            for choice in options:
                if choice != getattr(start, slot):
                    changed: dict[str, Any] = {slot: choice}
                    yield slot, replace(start, **changed)
        for slot, element in elements(start.element):
            yield slot, replace(start, element=element)

    return all_of


def _number(scale: float) -> str:
    mantissa, exponent = math.frexp(scale)
    return f"2**{exponent - 1}" if mantissa == 0.5 and not 0.001 < scale < 1000 else f"{scale:g}"


# --- the habits ---


def _both(scale: Scale) -> Tensor:
    """The scales of the two levels multiplied together."""
    product = scale.back[0]
    for factor in scale.back[1:]:
        product = product * factor
    return product


def _at_least(least: float) -> Choice[Peak]:
    return Choice(f"amax at least {least:g}", lambda blocks: _PEAK.value(blocks).clamp_min(least))


_PEAKS: tuple[Choice[Peak], ...] = (
    *(_at_least(least) for least in (1e-12, 1e-10, 1e-8, 1e-5, 1e-4)),
    Choice("NaN left out of amax", lambda blocks: _PEAK.value(blocks.nan_to_num(0.0, float("inf"), -float("inf")))),
    Choice("amax of finite values alone", lambda blocks: _PEAK.value(torch.where(blocks.isfinite(), blocks, 0.0))),
)
_POWER_INFINITES: tuple[Choice[Infinite], ...] = (
    Choice("an infinite amax counts as 2**128", counted),
    Choice("an infinite amax has the largest scale", largest),
)
_WIDE_INFINITES: tuple[Choice[Infinite], ...] = (Choice("an infinite amax makes the scale infinite", infinite),)
_OTHER_INFINITES: tuple[Choice[Infinite], ...] = (Choice("an infinite amax counts as float32's maximum", clamped),)


def _infinites(rule: ScaleRule) -> tuple[Choice[Infinite], ...]:
    if isinstance(rule, PowerOfTwo):
        return _POWER_INFINITES
    return (*_WIDE_INFINITES, *_OTHER_INFINITES) if isinstance(rule, Wide) else _OTHER_INFINITES


_INTOS: tuple[Choice[Through], ...] = (
    Choice("divided by the scale", lambda blocks, scale: blocks / _both(scale)),
    Choice("divided by the scale, at least 2**-126", lambda blocks, scale: blocks / _both(scale).clamp_min(2.0**-126)),
    Choice(
        "times the scale's reciprocal, or times 1 where the scale is 2**-127",
        lambda blocks, scale: blocks * torch.where(_both(scale) == 2.0**-127, 1.0, scale.into),
    ),
)
_BACKS: tuple[Choice[Through], ...] = (
    Choice("the two scales multiplied together first", lambda values, scale: values * _both(scale)),
)
