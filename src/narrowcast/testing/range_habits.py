"""What becomes of the ends of a format's range: zero, subnormals, overflow, infinity, NaN, negatives without a sign.

Each table lists the ways that are in use, likelier ones first. A new way is one row.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer, Minifloat, Specials
from narrowcast.testing.inputs import grid
from narrowcast.testing.rounder import NATIVE, PLAIN, Choice, Fix, Rounder

_WHOLE = Integer("a whole number", 16)
Test = Callable[[Tensor, Tensor, Rounder], Tensor]


# --- the bottom of the range, and zero ---


def where(test: Test, then: Fix) -> Fix:
    """Return the fix that applies ``then`` where ``test`` holds."""
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


def has_zero(fmt: Format) -> bool:
    """Return whether zero is one of its numbers."""
    return bool(fmt.round(torch.zeros(1)) == 0)


BOTTOMS = (
    Choice("subnormals flushed to zero", where(lambda x, v, r: _below_normal(v, v, r), lambda x, v, r: v * 0.0)),
    Choice("subnormals flushed to zero before rounding", where(_below_normal, lambda x, v, r: x * 0.0)),
    Choice("no subnormals: the nearer of zero and the smallest normal", where(_below_normal, _halfway_to_normal)),
    Choice("underflow to the smallest value, never to zero", where(lambda x, v, r: (v == 0) & (x != 0), _smallest)),
)


def _without_end(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return r.format.value.round(x * 2.0**64, r.rounding.value) * 2.0**-64


BOTTOMS_WITHOUT_ZERO = (
    Choice(
        "what lies below the smallest becomes NaN",
        where(lambda x, v, r: (x > 0) & (x < _smallest(x, v, r)), _filled(float("nan"))),
    ),
    Choice(
        "powers of two go on below the smallest",
        where(lambda x, v, r: (x > 0) & (x < _smallest(x, v, r)), _without_end),
    ),
    Choice(
        "rounding up between the two smallest values",
        where(
            lambda x, v, r: (_smallest(x, v, r) < x) & (x < 2 * _smallest(x, v, r)),
            lambda x, v, r: 2 * _smallest(x, v, r),
        ),
    ),
)
ZEROS = (
    Choice("sign of zero dropped", where(lambda x, v, r: (v == 0) & ~x.isnan(), lambda x, v, r: v.abs())),
    Choice("sign of a zero input dropped", where(lambda x, v, r: x == 0, lambda x, v, r: v.abs())),
    Choice("sign of an underflow dropped", where(lambda x, v, r: (v == 0) & (x != 0), lambda x, v, r: v.abs())),
)
ZERO_INPUTS = (
    Choice("zero becomes the smallest value", where(lambda x, v, r: x == 0, lambda x, v, r: _smallest(x.abs(), v, r))),
    Choice("zero becomes NaN", where(lambda x, v, r: x == 0, _filled(float("nan")))),
    Choice("zero stays zero, for which there is no code", where(lambda x, v, r: x == 0, lambda x, v, r: x.abs())),
    Choice("zero becomes one", where(lambda x, v, r: x == 0, lambda x, v, r: torch.ones_like(v))),
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
    try:
        return replace(fmt, exponent=fmt.exponent + 1)
    except InputError:  # that would go beyond float32
        return None


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


def _one_binade_lost(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """Rounding beyond the range unchecked, and binades told apart by a float32 logarithm (pychop)."""
    fmt = r.format.value
    above = torch.log2(x.abs()).floor() - fmt.top_exponent
    step = 2.0 ** (fmt.top_exponent - fmt.precision)
    beside = _WHOLE.round(x / step, r.rounding.value) * step
    beyond = torch.where(above == 1, 0.0, torch.full_like(x, float("inf")).copysign(x))
    return torch.where(above < 1, beside, beyond)


_ENDS: tuple[tuple[str, Fix], ...] = (
    ("saturates", _extreme),
    ("becomes infinity", _filled(float("inf"))),
    ("becomes zero", _filled(0.0)),  # before NaN, which is zero's code where there is none
    ("becomes NaN", _filled(float("nan"))),
)
OVERFLOWS = (
    Choice("overflow saturates", where(_too_large, _extreme)),
    *(Choice(f"overflow {what}", where(_rounds_beyond, fix)) for what, fix in _ENDS[1:]),
    *(Choice(f"anything above the maximum {what}", where(_too_large, fix)) for what, fix in _ENDS[1:]),
    Choice("overflow wraps around", where(_too_large, _wrapped)),
    Choice("the binade above the range becomes zero, what lies beyond infinity", where(_too_large, _one_binade_lost)),
)


def _signed_maximum(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    """Unlike saturation where there is one negative value more."""
    return torch.full_like(v, r.format.value.max).copysign(x)


INFINITIES = tuple(
    Choice(f"infinity {what}", where(lambda x, v, r: x.isinf(), fix))
    for what, fix in (
        _ENDS[0],
        ("kept", _ENDS[1][1]),
        *_ENDS[2:],
        ("becomes the maximum with its sign", _signed_maximum),
    )
)


# --- NaN, and negative values where there are none ---


def _nan(what: str, fix: Fix) -> Choice[Fix]:
    return Choice(f"NaN lost: {what}", where(lambda x, v, r: x.isnan(), fix))


def _number(of: Callable[[float, float], float]) -> Fix:
    """A number made of the format's lowest and highest, whatever the input's sign."""
    return lambda x, v, r: torch.full_like(v, of(*range_of(r.format.value)))


def _signed_extreme(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return _extreme(torch.ones_like(x).copysign(x), v, r)


def _as_number(round_bits: Callable[[Tensor, int], Tensor]) -> Fix:
    """A NaN's bits handled like a number's: what is left may be infinity, or zero where the carry reaches the sign."""

    def fix(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
        fmt = r.format.value
        if not isinstance(fmt, Minifloat):
            return v
        left = round_bits(x.view(torch.int32), 23 - fmt.mantissa).view(torch.float32)
        if not (fmt.saturate or fmt.specials is Specials.NONE):
            return left
        return torch.where(left == 0, left, torch.full_like(left, fmt.max).copysign(left))

    return fix


def _cut(bits: Tensor, shift: int) -> Tensor:
    return (bits >> shift) << shift


def _to_even(bits: Tensor, shift: int) -> Tensor:
    return _cut(bits + ((1 << (shift - 1)) - 1) + (bits >> shift & 1), shift)


def _away(bits: Tensor, shift: int) -> Tensor:
    return _cut(bits + (1 << (shift - 1)), shift)


NANS = (
    Choice("NaN kept", where(lambda x, v, r: x.isnan(), _filled(float("nan")))),
    _nan("it becomes zero", lambda x, v, r: torch.zeros_like(v)),
    _nan("it becomes the maximum", _number(lambda low, high: high)),
    _nan("it becomes the maximum with its sign", _signed_extreme),
    _nan("it becomes the lowest value", _number(lambda low, high: low)),
    _nan("it becomes negative zero", lambda x, v, r: -torch.zeros_like(v)),
    _nan("it becomes zero with its sign", _filled(0.0)),
    _nan("it becomes zero with the other sign", lambda x, v, r: torch.zeros_like(v).copysign(-x)),
    _nan("it becomes infinity", lambda x, v, r: torch.full_like(v, float("inf"))),
    _nan("it becomes infinity with its sign", _filled(float("inf"))),
    _nan("its payload is cut off, which may leave infinity", _as_number(_cut)),
    _nan("its bits are rounded like a number's, which may carry into the sign", _as_number(_to_even)),
    _nan("its bits are rounded like a number's, ties away", _as_number(_away)),
)


def _mirrored(x: Tensor, v: Tensor, r: Rounder) -> Tensor:
    return -replace(r, source=PLAIN, negative=NATIVE).values(x.abs())


NEGATIVES = tuple(
    Choice(f"negative values {what}", where(lambda x, v, r: x < 0, fix))
    for what, fix in (
        ("become zero", lambda x, v, r: torch.zeros_like(v)),
        ("wrap around", _wrapped),
        ("lose their sign", lambda x, v, r: replace(r, source=PLAIN, negative=NATIVE).values(x.abs())),
        ("keep their sign, for which there is no bit", _mirrored),
        ("become NaN", _filled(float("nan"))),
        ("become the smallest value", lambda x, v, r: _smallest(x.abs(), v, r)),
    )
)
