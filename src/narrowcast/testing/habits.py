"""The habits that encoders have: for each slot of a `Rounder`, the ways of doing that one thing, likelier ones first.

A new way is one row here; every report then names it where it fits.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer, Minifloat, Rounding, Specials, format, formats, rounding
from narrowcast.testing.inputs import grid
from narrowcast.testing.rounder import NATIVE, PLAIN, Choice, Fix, Rounder

Test = Callable[[Tensor, Tensor, Rounder], Tensor]


def rounder(fmt: Format, mode: Rounding) -> Rounder:
    """Return the rounder that does as ``fmt`` and ``mode`` say."""
    return Rounder(Choice(f"format {fmt}", fmt), Choice(_ROUNDING_NAMES.get(mode.name, f"rounding {mode}"), mode))


def neighbours(start: Rounder) -> Iterator[tuple[str, Rounder]]:
    """Yield (slot, rounder) for every rounder that differs from ``start`` in one slot."""
    for slot, choices in slots(start.format.value).items():
        for choice in choices:
            if choice != getattr(start, slot):
                yield slot, replace(start, **{slot: choice})


@lru_cache(maxsize=64)
def slots(fmt: Format) -> dict[str, tuple[Choice[Any], ...]]:
    """Return the choices that there are for a format, by slot."""
    return {
        "rounding": _ROUNDINGS,
        "overflow": (NATIVE, *_OVERFLOWS),
        "infinity": (NATIVE, *_INFINITIES),
        "nan": (NATIVE, *_NANS),
        "zero": (NATIVE, *(_ZEROS if fmt.smallest > 0 and _has_zero(fmt) else _ZERO_INPUTS)),
        "bottom": (NATIVE, *_BOTTOMS),
        "source": (PLAIN, *_SOURCES),
        "fraction": (NATIVE, *(_FRACTIONS if isinstance(fmt, Integer) else ())),
        "negative": (NATIVE, *(_NEGATIVES if range_of(fmt)[0] >= 0 else ())),
        "format": tuple(Choice(f"format {f}", f) for f in (fmt, *_relatives(fmt))),
    }


# --- which neighbour ---


def _nearest_up(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) + sign)) >> shift


def _nearest_down(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) - 1 - sign)) >> shift


def _away(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << shift) - 1)) >> shift


_ROUNDING_NAMES = {
    "nearest-even": "ties to even",
    "nearest-away": "ties away from zero",
    "nearest-zero": "ties to zero",
    "toward-zero": "truncation",
    "up": "rounding up",
    "down": "rounding down",
    "odd": "rounding to odd",
}
_ROUNDINGS = (
    *(Choice(text, rounding(name)) for name, text in _ROUNDING_NAMES.items()),
    Choice("ties up", Rounding("nearest-up", _nearest_up)),
    Choice("ties down", Rounding("nearest-down", _nearest_down)),
    Choice("rounding away from zero", Rounding("away", _away)),
)


def _first(name: str, mode: str) -> Choice[Callable[[Tensor], Tensor]]:
    fmt, how = format(name), "cut" if mode == "toward-zero" else "rounded"
    return Choice(f"double rounding: first {how} to {name}", lambda x: fmt.round(x, rounding(mode)))


_SOURCES = (
    *(_first(name, mode) for mode in ("nearest-even", "toward-zero") for name in ("bfloat16", "float16")),
    Choice("float32 subnormals taken as zero", lambda x: torch.where(x.abs() < 2.0**-126, x * 0.0, x)),
)


def _half_added(drop: Callable[[Tensor], Tensor], signed: bool) -> Fix:
    """Adding one half in float32 rounds, and sends 0.49999997 up too."""

    def fix(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
        low, high = range_of(r.format.value)
        scaled = x / r.format.value.smallest
        half = torch.full_like(x, 0.5)
        return (drop(scaled + (half.copysign(x) if signed else half)) * r.format.value.smallest).clamp(low, high)

    return fix


_FRACTIONS = (
    Choice("one half added in float32, then truncation", _half_added(torch.trunc, signed=True)),
    Choice("one half added in float32, then floor", _half_added(torch.floor, signed=False)),
)


# --- the bottom of the range, and zero ---


def _where(test: Test, then: Fix) -> Fix:
    return lambda x, v, r: torch.where(test(x, v, r), then(x, v, r), v)


def _filled(number: float) -> Fix:
    """``number`` with the input's sign."""
    return lambda x, v, r: torch.full_like(v, number).copysign(x)


def _below_normal(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return x.abs() < r.format.value.smallest_normal


def _halfway_to_normal(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    normal = r.format.value.smallest_normal
    return torch.where(x.abs() > normal / 2, normal, 0.0).copysign(x)


def _smallest(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return torch.full_like(v, r.format.value.smallest).copysign(x)


def _has_zero(fmt: Format) -> bool:
    return bool(fmt.round(torch.zeros(1)) == 0)


_BOTTOMS = (
    Choice("subnormals flushed to zero", _where(lambda x, v, r: _below_normal(v, v, r), lambda x, v, r: v * 0.0)),
    Choice("subnormals flushed to zero before rounding", _where(_below_normal, lambda x, v, r: x * 0.0)),
    Choice("no subnormals: the nearer of zero and the smallest normal", _where(_below_normal, _halfway_to_normal)),
    Choice("underflow to the smallest value, never to zero", _where(lambda x, v, r: (v == 0) & (x != 0), _smallest)),
)
_ZEROS = (
    Choice("sign of zero dropped", _where(lambda x, v, r: v == 0, lambda x, v, r: v.abs())),
    Choice("sign of a zero input dropped", _where(lambda x, v, r: x == 0, lambda x, v, r: v.abs())),
    Choice("sign of an underflow dropped", _where(lambda x, v, r: (v == 0) & (x != 0), lambda x, v, r: v.abs())),
)
_ZERO_INPUTS = (
    Choice("zero becomes the smallest value", _where(lambda x, v, r: x == 0, lambda x, v, r: _smallest(x.abs(), v, r))),
    Choice("zero becomes NaN", _where(lambda x, v, r: x == 0, _filled(float("nan")))),
    Choice("zero becomes one", _where(lambda x, v, r: x == 0, lambda x, v, r: torch.ones_like(v))),
)


# --- the top of the range ---


@lru_cache(maxsize=64)
def range_of(fmt: Format) -> tuple[float, float]:
    """Return the lowest and the highest finite value."""
    return float(grid(fmt)[0]), fmt.max


@lru_cache(maxsize=64)
def _unbounded(fmt: Format) -> Format | None:
    """Return a format with the same grid that tells what lies beyond the maximum, or None."""
    if isinstance(fmt, Integer):
        return replace(fmt, width=16, signed=True, symmetric=False)
    if not isinstance(fmt, Minifloat):
        return None
    if fmt.specials is not Specials.NONE:
        return replace(fmt, saturate=False)
    return replace(fmt, exponent=fmt.exponent + 1) if fmt.exponent < 8 else None


def _too_large(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    low, high = range_of(r.format.value)
    return ((x > high) | (x < low)) & x.isfinite() & (x.abs() > high)


def _rounds_beyond(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """Finite values that round beyond the range, were there numbers (IEEE 754's overflow)."""
    wide, (low, high) = _unbounded(r.format.value), range_of(r.format.value)
    if wide is None:
        return _too_large(x, v, r)
    there = wide.round(x, r.rounding.value)
    return ~((there >= low) & (there <= high)) & _too_large(x, v, r)


def _extreme(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    low, high = range_of(r.format.value)
    return torch.where(x < 0, low, high).to(v.dtype)


def _wrapped(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """An integer's low bits: what a conversion without a clamp keeps."""
    fmt = r.format.value
    if not isinstance(fmt, Integer):
        return v
    whole = r.rounding.value.name
    scaled = x.double() * 2.0**fmt.fraction
    k = scaled.trunc() if whole == "toward-zero" else scaled.round()
    low_bits = k.remainder(1 << fmt.width)
    negative = (low_bits >= 1 << (fmt.width - 1)) & fmt.signed
    return torch.where(negative, low_bits - (1 << fmt.width), low_bits).float() * fmt.smallest


_ENDS: tuple[tuple[str, Fix], ...] = (
    ("saturates", _extreme),
    ("becomes infinity", _filled(float("inf"))),
    ("becomes zero", _filled(0.0)),  # before NaN, which is zero's code where there is none
    ("becomes NaN", _filled(float("nan"))),
)
_OVERFLOWS = (
    Choice("overflow saturates", _where(_too_large, _extreme)),
    *(Choice(f"overflow {what}", _where(_rounds_beyond, fix)) for what, fix in _ENDS[1:]),
    *(Choice(f"anything above the maximum {what}", _where(_too_large, fix)) for what, fix in _ENDS[1:]),
    Choice("overflow wraps around", _where(_too_large, _wrapped)),
)
_INFINITIES = tuple(
    Choice(f"infinity {what}", _where(lambda x, v, r: x.isinf(), fix))
    for what, fix in (_ENDS[0], ("kept", _ENDS[1][1]), *_ENDS[2:])
)


# --- NaN, and negative values where there are none ---


def _nan(what: str, fix: Fix) -> Choice[Fix]:
    return Choice(f"NaN lost: {what}", _where(lambda x, v, r: x.isnan(), fix))


def _number(of: Callable[[float, float], float]) -> Fix:
    """A number made of the format's lowest and highest, whatever the input's sign."""
    return lambda x, v, r: torch.full_like(v, of(*range_of(r.format.value)))


def _signed_extreme(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return _extreme(torch.ones_like(x).copysign(x), v, r)


def _cut_bits(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """The leading 16 bits, as for bfloat16."""
    return ((x.view(torch.int32) >> 16) << 16).view(torch.float32)


def _rounded_bits(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    bits = x.view(torch.int32)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).view(torch.float32)


_NANS = (
    Choice("NaN kept", _where(lambda x, v, r: x.isnan(), _filled(float("nan")))),
    _nan("it becomes zero", lambda x, v, r: torch.zeros_like(v)),
    _nan("it becomes the maximum", _number(lambda low, high: high)),
    _nan("it becomes the maximum with its sign", _signed_extreme),
    _nan("it becomes the lowest value", _number(lambda low, high: low)),
    _nan("it becomes negative zero", lambda x, v, r: -torch.zeros_like(v)),
    _nan("it becomes zero with its sign", _filled(0.0)),
    _nan("it becomes infinity", lambda x, v, r: torch.full_like(v, float("inf"))),
    _nan("it becomes infinity with its sign", _filled(float("inf"))),
    _nan("its payload is cut off, which may leave infinity", _cut_bits),
    _nan("its bits are rounded like a number's, which may carry into the sign", _rounded_bits),
)
_NEGATIVES = tuple(
    Choice(f"negative values {what}", _where(lambda x, v, r: x < 0, fix))
    for what, fix in (
        ("become zero", lambda x, v, r: torch.zeros_like(v)),
        ("lose their sign", lambda x, v, r: r.format.value.round(x.abs(), r.rounding.value)),
        ("become NaN", _filled(float("nan"))),
        ("become the smallest value", lambda x, v, r: _smallest(x.abs(), v, r)),
    )
)


# --- another format altogether ---


def _relatives(fmt: Format) -> list[Format]:
    """Return the formats with as many bits, and for a minifloat those with a neighbouring bias."""
    found = [f for f in formats().values() if f.bits == fmt.bits and f != fmt]
    if isinstance(fmt, Minifloat):
        for bias in (fmt.bias - 1, fmt.bias + 1):
            try:
                found.append(replace(fmt, name=f"{fmt.name} with bias {bias}", bias=bias))
            except InputError:
                continue
    return found
