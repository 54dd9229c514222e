"""Shortcuts through float32 arithmetic that cost a bit here and there, as encoders are known to take them."""

from collections.abc import Callable

import torch
from torch import Tensor

from narrowcast.formats import Format, Integer, Minifloat, format, rounding
from narrowcast.testing.range_habits import range_of
from narrowcast.testing.rounder import Choice, Fix, Rounder

Source = Callable[[Tensor], Tensor]
_WHOLE = Integer("a whole number", 16)
_NEARLY = 1e-6  # distance from a tie, in steps, at which pychop calls it one


# --- before rounding ---


def _first(name: str, mode: str) -> Choice[Source]:
    fmt, how = format(name), "cut" if mode == "toward-zero" else "rounded"
    return Choice(f"double rounding: first {how} to {name}", lambda x: fmt.round(x, rounding(mode)))


_SOURCES: tuple[Choice[Source], ...] = (
    *(_first(name, mode) for mode in ("nearest-even", "toward-zero") for name in ("bfloat16", "float16")),
    Choice("float32 subnormals taken as zero", lambda x: torch.where(x.abs() < 2.0**-126, x * 0.0, x)),
)


def sources(fmt: Format) -> tuple[Choice[Source], ...]:
    """Return what may happen to a value before it is rounded to ``fmt``."""
    if not _has_binades(fmt):
        return _SOURCES
    return (*_SOURCES, Choice("what is within 1e-6 steps of a tie counts as one", lambda x: _snapped(x, fmt)))


def _has_binades(fmt: Format) -> bool:
    return isinstance(fmt, Minifloat) and fmt.smallest < fmt.smallest_normal


def _snapped(x: Tensor, fmt: Format) -> Tensor:
    """Values nearly halfway between two neighbours, put halfway."""
    step = _step(torch.frexp(x)[1] - 1, fmt)
    steps = x.abs() / step
    middle = steps.floor() + 0.5
    return torch.where((steps - middle).abs() < _NEARLY, (middle * step).copysign(x), x)


def _step(exponent: Tensor, fmt: Format) -> Tensor:
    """The step of the binade of values with this exponent."""
    lowest = torch.tensor(fmt.smallest_normal).log2()
    return torch.exp2(exponent.double().clamp_min(float(lowest)) - fmt.precision).float()


# --- instead of rounding ---


def fractions(fmt: Format) -> tuple[Choice[Fix], ...]:
    """Return the ways to drop what ``fmt`` has no bits for, other than to round once."""
    if isinstance(fmt, Integer):
        return _ADDED
    return _BINADES if _has_binades(fmt) else ()


def _half_added(drop: Callable[[Tensor], Tensor], signed: bool) -> Fix:
    """Adding one half in float32 rounds, and sends 0.49999997 up too."""

    def fix(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
        low, high = range_of(r.format.value)
        scaled = x / r.format.value.smallest
        half = torch.full_like(x, 0.5)
        return (drop(scaled + (half.copysign(x) if signed else half)) * r.format.value.smallest).clamp(low, high)

    return fix


def _back_and_round(x: Tensor) -> Tensor:
    return (x - 0.5).round()


_ADDED: tuple[Choice[Fix], ...] = (
    Choice("one half added in float32, then truncation", _half_added(torch.trunc, signed=True)),
    Choice("one half added in float32, then floor", _half_added(torch.floor, signed=False)),
    Choice("one half added and taken off in float32, then ties to even", _half_added(_back_and_round, signed=False)),
)


def _by_logarithm(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """The binade taken from a float32 logarithm: just below a power of two it is one too high."""
    step = _step(torch.log2(x.abs().clamp_min(1e-38)).floor(), r.format.value)
    whole = _WHOLE.round(x / step, r.rounding.value) * step
    return torch.where(x.abs() <= r.format.value.max, whole.copysign(x), v)


def _past_one(by: float) -> Fix:
    """Subnormals handled as ``(m + by) - by``, which keeps 24 bits below the smallest normal and no more."""

    def fix(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
        normal = r.format.value.smallest_normal
        kept = ((x.abs() / normal + by) - by) * normal
        again = r.format.value.round(r.source.value(kept.copysign(x)), r.rounding.value)
        return torch.where(x.abs() < normal, again.copysign(x), v)

    return fix


_LESS_ONE = _past_one(-1.0)
_BINADES: tuple[Choice[Fix], ...] = (
    Choice("binades by a float32 logarithm", _by_logarithm),
    Choice("subnormals rounded as 1 + (m - 1) in float32", _LESS_ONE),
    Choice("subnormals rounded as (m + 1) - 1 in float32", _past_one(1.0)),
    Choice(
        "binades by a float32 logarithm, subnormals rounded as 1 + (m - 1)",
        lambda x, v, r: _LESS_ONE(x, _by_logarithm(x, v, r), r),
    ),
)
