"""How single numbers are rounded, one habit at a time: a format's own way, or another way that someone else may have.

A `Rounder` has a slot for everything about which encoders disagree. Each slot holds a `Choice`, a named way of doing
that one thing; `habits` lists them, and `search` finds those that a foreign encoder has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from narrowcast.formats import Format, Rounding

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One way of doing one thing, with the ``name`` that a report gives it."""

    name: str
    value: T


#: (source, value so far, rounder) -> value: what one habit makes of it; all float32
Fix = Callable[[Tensor, Tensor, "Rounder"], Tensor]
NATIVE: Choice[Fix] = Choice("the format's own way", lambda x, v, r: v)
PLAIN: Choice[Callable[[Tensor], Tensor]] = Choice("no rounding before", lambda x: x)


@dataclass(frozen=True)
class Rounder:
    """A format and a rounding, with a habit in each slot.

    Attributes:
        format: which numbers exist.
        rounding: which neighbour is taken.
        source: what happens to the input before it is rounded.
        fraction, bottom, overflow, infinity, nan, negative, zero: how an integer's fraction is dropped, and what
            becomes of subnormal results, of finite values beyond the maximum, of infinities, of NaN, of negative values
            (where there are none), and of zeros.
    """

    format: Choice[Format]
    rounding: Choice[Rounding]
    source: Choice[Callable[[Tensor], Tensor]] = PLAIN
    fraction: Choice[Fix] = NATIVE
    bottom: Choice[Fix] = NATIVE
    overflow: Choice[Fix] = NATIVE
    infinity: Choice[Fix] = NATIVE
    nan: Choice[Fix] = NATIVE
    negative: Choice[Fix] = NATIVE
    zero: Choice[Fix] = NATIVE

    def values(self, x: Tensor) -> Tensor:
        """Return what the float32 ``x`` becomes, float32."""
        x = self.source.value(x)
        return self.fixed(x, self.format.value.round(x, self.rounding.value))

    def fixed(self, x: Tensor, value: Tensor) -> Tensor:
        """Return ``value``, the format's own rounding of ``x``, with every habit applied."""
        top = (self.overflow, self.infinity, self.nan, self.negative)
        for choice in (self.fraction, self.bottom, *top, self.zero):
            value = choice.value(x, value, self)
        return value
