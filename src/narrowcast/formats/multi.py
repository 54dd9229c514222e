"""Numbers in several parts: a value as the unevaluated sum of a few numbers of one narrow format.

    x  =  x1 + x2 + ... + xk        with x1 = round(x), x2 = round(x - x1), ...

Two bfloat16 hold 17 significant bits, three hold a float32. The operations below need nothing wider than the format
itself: the error of a rounded sum or product is again a number of the format, and a few more rounded operations find it
(*error-free transforms*). They are emulated here with every operation rounded to the format, from a carrier wide
enough that the carrier's own rounding does not show (Figueroa 1995: 2p + 2 bits for formats of p).
Sources: Dekker 1971; Knuth, TAOCP 2, 4.2.2 (two_sum); Shewchuk 1997 (expansions); Yu et al. 2024, "Collage" (grow,
multiply).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.catalogue import format as format_of
from narrowcast.formats.format import Format
from narrowcast.formats.minifloat import Minifloat
from narrowcast.formats.specials import Bottom

Pair = tuple[Tensor, Tensor]
Sum = Callable[[Tensor, Tensor, Format], Pair]


@dataclass(frozen=True)
class Multi:
    """A number in ``parts`` parts of ``format``, the largest first.

    Attributes:
        format: of each part: a signed float with gradual underflow, so that a small difference is never flushed.
        parts: 2 to 4.
    """

    format: Minifloat
    parts: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.parts <= 4:
            raise InputError(f"numbers in parts of {self.format}: expected 2 to 4 parts, found {self.parts}")
        if not (isinstance(self.format, Minifloat) and self.format.signed and self.format.bottom is Bottom.SUBNORMAL):
            raise InputError(f"numbers in parts need a signed float with subnormals, found {self.format}")

    @property
    def bits(self) -> int:
        """Stored bits."""
        return self.parts * self.format.bits

    @property
    def significant_bits(self) -> int:
        """The P with ``|value(split(x)) - x| <= 2**-P |x|`` wherever no part underflows.

        A part of p bits leaves half a step at most, which the sign of the next part halves again: k p + k - 1.
        """
        return self.parts * (self.format.precision + 1) + self.parts - 1

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of ``x`` (any float dtype), float32 tensors of its shape, each rounded to nearest even.

        Beyond the range the first part is what the format makes of it and the others are zero; so they are for NaN.
        """
        rest = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.format.saturate:
            rest = rest.clamp(-self.format.max, self.format.max)
        found = []
        for _ in range(self.parts):
            part = self.format.round(rest)
            found.append(part)
            rest = torch.where(part.isfinite(), rest - part, 0.0)  # exact: the difference has no more bits than x
        return tuple(found)

    def value(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of ``parts`` as float64: exact where they span 53 bits or fewer, as after `split`."""
        total = parts[-1].double()
        for part in reversed(parts[:-1]):
            total = total + part
        return total

    def __str__(self) -> str:
        return f"{self.format}x{self.parts}"


def multi(fmt: str | Format, parts: int = 2) -> Multi:
    """Return numbers in ``parts`` parts of a format or its name.

    >>> multi("bfloat16", 3).significant_bits
    26
    """
    return Multi(format_of(fmt), parts)  # type: ignore[arg-type]  # another family is refused at birth


def two_sum(a: Tensor, b: Tensor, fmt: Format) -> Pair:
    """Return ``(s, e)`` with s = round(a + b) and s + e = a + b exactly: six operations, no condition (Knuth).

    ``a`` and ``b`` are float32 tensors of values of ``fmt``, and so are the results; no sum may leave the range.
    """
    add = _rounded(fmt, torch.add)
    subtract = _rounded(fmt, torch.sub)
    total = add(a, b)
    b_part = subtract(total, a)
    a_part = subtract(total, b_part)
    return total, add(subtract(a, a_part), subtract(b, b_part))


def fast_two_sum(a: Tensor, b: Tensor, fmt: Format) -> Pair:
    """Return `two_sum` in three operations; exact where ``|a| >= |b|`` or a is zero (Dekker), and not elsewhere."""
    subtract = _rounded(fmt, torch.sub)
    total = _rounded(fmt, torch.add)(a, b)
    return total, subtract(b, subtract(total, a))


def two_prod(a: Tensor, b: Tensor, fmt: Format) -> Pair:
    """Return ``(p, e)`` with p = round(a b) and p + e = a b exactly, as one fused multiply-add finds it.

    Exact unless the error falls below the format's smallest value; ``a`` and ``b`` as for `two_sum`.
    """
    exact = a.double() * b.double()
    product = fmt.round(exact)
    return product, fmt.round(exact - product)


def grow(x: Pair, d: Tensor, fmt: Format, total: Sum = two_sum) -> Pair:
    """Return the pair ``x + d``: Collage's Grow, which keeps what a rounded update would lose.

    ``total`` finds the error of the leading sum. The paper takes `fast_two_sum`, which needs ``|x| >= |d|`` and so goes
    wrong for parameters that start at zero; the default has no condition.
    """
    high, error = total(x[0], d, fmt)
    return fast_two_sum(high, _rounded(fmt, torch.add)(x[1], error), fmt)


def multiply(x: Pair, y: Pair, fmt: Format) -> Pair:
    """Return the pair ``x y`` less the product of the two low parts: Collage's Mul.

    The released code of the paper multiplies in place and so corrects with the wrong operands; this is its algorithm.
    """
    add, times = _rounded(fmt, torch.add), _rounded(fmt, torch.mul)
    high, error = two_prod(x[0], y[0], fmt)
    low = add(add(times(x[1], y[0]), times(x[0], y[1])), error)
    return fast_two_sum(high, low, fmt)


def _rounded(fmt: Format, operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``operation`` with its result rounded to ``fmt`` once."""
    carrier = torch.float32 if 2 * (fmt.precision + 1) + 2 <= 24 else torch.float64
    return lambda a, b: fmt.round(operation(a.to(carrier), b.to(carrier)))
