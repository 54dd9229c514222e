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
from narrowcast.formats import Format, Integer, Minifloat, Rounding, formats, rounding
from narrowcast.testing.range_habits import (
    BOTTOMS,
    BOTTOMS_WITHOUT_ZERO,
    INFINITIES,
    NANS,
    NEGATIVES,
    OVERFLOWS,
    ZERO_INPUTS,
    ZEROS,
    has_zero,
    range_of,
)
from narrowcast.testing.rounder import NATIVE, PLAIN, Choice, Rounder
from narrowcast.testing.shortcuts import fractions, sources


def rounder(fmt: Format, mode: Rounding) -> Rounder:
    """Return the rounder that does as ``fmt`` and ``mode`` say."""
    return Rounder(Choice(f"format {fmt}", fmt), Choice(_ROUNDING_NAMES.get(mode.name, f"rounding {mode}"), mode))


def neighbours(asked: Format) -> Callable[[Rounder], Iterator[tuple[str, Rounder]]]:
    """Return the function from a rounder to those that differ in one slot, where ``asked`` was asked for."""

    def all_of(start: Rounder) -> Iterator[tuple[str, Rounder]]:
        for slot, choices in slots(asked).items():
            for choice in choices:
                if choice != getattr(start, slot):
                    yield slot, replace(start, **{slot: choice})

    return all_of


@lru_cache(maxsize=64)
def slots(fmt: Format) -> dict[str, tuple[Choice[Any], ...]]:
    """Return the choices that there are for a format, by slot."""
    return {
        "rounding": _ROUNDINGS,
        "overflow": (NATIVE, *OVERFLOWS),
        "infinity": (NATIVE, *INFINITIES),
        "nan": (NATIVE, *NANS),
        "zero": (NATIVE, *(ZEROS if has_zero(fmt) else ZERO_INPUTS)),
        "bottom": (NATIVE, *(BOTTOMS if has_zero(fmt) else BOTTOMS_WITHOUT_ZERO)),
        "source": (PLAIN, *sources(fmt)),
        "fraction": (NATIVE, *fractions(fmt)),
        "negative": (NATIVE, *(NEGATIVES if range_of(fmt)[0] >= 0 else ())),
        "format": tuple(Choice(f"format {f}", f) for f in (fmt, *_relatives(fmt))),
    }


# --- which neighbour ---


def _away(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << shift) - 1)) >> shift


def _always_odd(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return torch.where(n == 0, 0, (n >> shift) | 1)


_ROUNDING_NAMES = {
    "nearest-even": "ties to even",
    "nearest-away": "ties away from zero",
    "nearest-zero": "ties to zero",
    "nearest-up": "ties up",
    "nearest-down": "ties down",
    "toward-zero": "truncation",
    "up": "rounding up",
    "down": "rounding down",
    "odd": "rounding to odd",
}
_ROUNDINGS = (
    *(Choice(text, rounding(name)) for name, text in _ROUNDING_NAMES.items()),
    Choice("rounding away from zero", Rounding("away", _away)),
    Choice("rounding to odd, exact even codes too", Rounding("always-odd", _always_odd)),
)


# --- another format altogether ---


def _same_numbers(one: Format, other: Format) -> bool:
    """Whether two formats differ in name or in overflow alone, for which there are slots."""
    if isinstance(one, Minifloat) and isinstance(other, Minifloat):
        return replace(one, name=other.name, saturate=other.saturate) == other
    return one == other


def _relatives(fmt: Format) -> list[Format]:
    """Return the formats with as many bits, and for a minifloat those with a neighbouring bias."""
    found = [f for f in formats().values() if f.bits == fmt.bits and not _same_numbers(f, fmt)]
    if isinstance(fmt, Minifloat):
        for bias in (fmt.bias - 1, fmt.bias + 1):
            try:
                found.append(replace(fmt, name=f"{fmt.name} with bias {bias}", bias=bias))
            except InputError:
                continue
    if isinstance(fmt, Integer) and fmt.signed and fmt.symmetric:
        found.append(replace(fmt, name=f"{fmt.name} with its most negative code", symmetric=False))
    return found
