"""What multiplies: the ordinary product, or L-Mul, which is one integer addition.

    x = (1 + xm) 2**xe,  y = (1 + ym) 2**ye:    x y = (1 + xm + ym + xm ym) 2**(xe + ye)

L-Mul puts a constant in place of ``xm ym``: ``2**-l(m)``, l = m up to 3 mantissa bits, 3 for 4, 4 beyond (Luo & Sun,
"Addition is all you need for energy-efficient language models", 2024). As hardware it adds the two words
(exponent and mantissa together) as integers, takes off one bias and adds the constant; a mantissa sum that reaches 1
carries into the exponent. The paper's formula without that carry is another, less accurate function (1.5 x 1.5 with
3 bits: 2.125; with the carry 2.25, which is exact); both are here.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Rounding, rounding
from narrowcast.formats.format import FLOAT32_MAGNITUDE, FLOAT32_MANTISSA, FLOAT32_SIGN

_ONE = 0x3F800000  # the word of 1.0: float32's bias, in place
_SMALLEST_NORMAL, _INFINITY = 0x00800000, 0x7F800000
_FLOAT32_MAX = torch.finfo(torch.float32).max
_BLOCK = 1 << 18  # products at a time, so that the passes over them stay in cache: 1 to 3 ns each, one thread


class Product(ABC):
    """A product of two numbers, and of two matrices with float32 sums in the library's order."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the products of ``a`` and ``b`` (float32, shapes broadcast) as float64, exactly as they come out."""

    @abstractmethod
    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``[..., M, N]``: float32 sums of the products of ``a [..., M, K]`` and ``b [..., N, K]``."""

    @abstractmethod
    def __str__(self) -> str:
        """Return its spelling."""


@dataclass(frozen=True)
class Times(Product):
    """The ordinary product; exact in float64 for float32 operands (48 bits)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Product`."""
        return a.double() * b.double()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Product`; float64 operands stay float64."""
        return a @ b.mT.to(a.dtype)

    def __str__(self) -> str:
        return "times"


TIMES = Times()
TOWARD_ZERO = rounding("toward-zero")


@dataclass(frozen=True)
class LMul(Product):
    """L-Mul on operands cut to ``mantissa`` bits.

    Zero times anything finite is zero, subnormal operands and results count as zero, what overflows becomes float32's
    maximum; infinities and NaN go the way of the ordinary product. Commutative; exact in sign and under powers of
    two; not exact for 1 x 1 (with 3 bits 1.125). At full width the error settles at 2.6 % of the product on average.

    Attributes:
        mantissa: mantissa bits of the operands, 1 to 23.
        rounding: how they are cut to that many bits; the paper's ordering of accuracies is that of truncation.
        carry: the hardware's form; False for the paper's formula, whose matrix product is three ordinary ones.
    """

    mantissa: int = FLOAT32_MANTISSA
    rounding: Rounding = TOWARD_ZERO
    carry: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.mantissa <= FLOAT32_MANTISSA:
            raise InputError(f"L-Mul: expected 1 to 23 mantissa bits, found {self.mantissa}")
        if self.rounding.random:
            raise InputError(f"L-Mul: its operands are cut by a deterministic rounding, found {self.rounding}")

    @property
    def offset(self) -> int:
        """l(m): the constant is 2**-l."""
        return min(self.mantissa, 3) if self.mantissa <= 4 else 4

    @property
    def _bias(self) -> int:
        """What is taken off the sum of two words: float32's bias, less the constant."""
        return _ONE - (1 << (FLOAT32_MANTISSA - self.offset))

    def operand(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (words, gates): int32 words cut to ``mantissa`` bits, and what their products are multiplied by.

        A zero, infinity or NaN has the word of 1 under its sign, and 0, infinity or NaN for a gate; other gates are 1.
        Without any such element there are no gates.
        """
        x = x.detach().float()
        bits = x.view(torch.int32)
        word, shift = bits & FLOAT32_MAGNITUDE, FLOAT32_MANTISSA - self.mantissa
        special = (word < _SMALLEST_NORMAL) | (word >= _INFINITY)
        cut = (self.rounding(word, shift, bits >> 31, None) << shift).clamp_max_(_INFINITY - (1 << shift))
        cut = cut.masked_fill_(special, _ONE) | (bits & FLOAT32_SIGN)
        if not special.any():
            return cut, None
        gate = torch.where(word < _SMALLEST_NORMAL, 0.0, torch.where(special, x.abs(), 1.0))
        return cut, gate

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Product`."""
        (wa, ga), (wb, gb) = self.operand(a), self.operand(b)
        value = self._sum_of_words(wa, wb, safe=False).double() if self.carry else self._formula(wa, wb)
        for gate in (ga, gb):
            value = value if gate is None else value * gate
        return value

    def _sum_of_words(self, wa: Tensor, wb: Tensor, safe: bool) -> Tensor:
        """Add words; ``safe`` promises that no product leaves float32's normal range: then one addition does all.

        (The sign bits then add modulo 2: the carry out of the word is lost, as in hardware.)
        """
        if safe:
            return (wa + (wb - self._bias)).view(torch.float32)
        magnitude = (wa & FLOAT32_MAGNITUDE).long() + ((wb & FLOAT32_MAGNITUDE).long() - self._bias)
        magnitude = magnitude.masked_fill(magnitude < _SMALLEST_NORMAL, 0).clamp_max(_INFINITY - 1).int()
        return (magnitude | ((wa ^ wb) & FLOAT32_SIGN)).view(torch.float32)

    def _formula(self, wa: Tensor, wb: Tensor) -> Tensor:
        """The paper's formula, in float64, with the same edges."""
        (xa, ta), (xb, tb) = (_with_power(w.view(torch.float32).double(), w) for w in (wa, wb))
        value = ta * xb + xa * tb + (2.0**-self.offset - 1) * (ta * tb)
        value = value.masked_fill(value.abs() < 2.0**-126, 0.0)
        return value.clamp(-_FLOAT32_MAX, _FLOAT32_MAX)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Product`."""
        (wa, ga), (wb, gb) = self.operand(a), self.operand(b)
        if not self.carry:
            (xa, ta), (xb, tb) = (_with_power(w.view(torch.float32), w, g) for w, g in ((wa, ga), (wb, gb)))
            return ta @ xb.mT + (xa + (2.0**-self.offset - 1) * ta) @ tb.mT
        safe = self._stays_normal(wa, wb)
        cost = max(1, a.shape[:-2].numel() * b.shape[-1])
        columns = max(1, min(b.shape[-2], _BLOCK // cost))
        rows = max(1, _BLOCK // (cost * columns))
        strips = [
            torch.cat([self._block(*left, *right, safe) for right in _split(wb, gb, columns)], dim=-1)
            for left in _split(wa, ga, rows)
        ]
        return torch.cat(strips, dim=-2)

    def _stays_normal(self, wa: Tensor, wb: Tensor) -> bool:
        """Whether every product is a normal float32."""
        if not (wa.numel() and wb.numel()):
            return True
        (la, ha), (lb, hb) = ((w & FLOAT32_MAGNITUDE).aminmax() for w in (wa, wb))
        return int(la) + int(lb) - self._bias >= _SMALLEST_NORMAL and int(ha) + int(hb) - self._bias < _INFINITY

    def _block(self, wa: Tensor, ga: Tensor | None, wb: Tensor, gb: Tensor | None, safe: bool) -> Tensor:
        terms = self._sum_of_words(wa[..., :, None, :], wb[..., None, :, :], safe)
        terms = terms if ga is None else terms.mul_(ga[..., :, None, :])
        terms = terms if gb is None else terms.mul_(gb[..., None, :, :])
        return terms.sum(-1)

    def __str__(self) -> str:
        options = "" if self.rounding is TOWARD_ZERO else f"+{self.rounding}"
        return f"lmul{self.mantissa}{options}{'' if self.carry else '+formula'}"


def _with_power(x: Tensor, word: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (x, its signed power of two), both times ``gate``."""
    power = (word & ~((1 << FLOAT32_MANTISSA) - 1)).view(torch.float32).to(x.dtype)
    return (x, power) if gate is None else (x * gate, power * gate)


def _split(word: Tensor, gate: Tensor | None, rows: int) -> list[tuple[Tensor, Tensor | None]]:
    words = word.split(rows, dim=-2)
    gates: Sequence[Tensor | None] = [None] * len(words) if gate is None else gate.split(rows, dim=-2)
    return list(zip(words, gates, strict=True))


def product(spelling: "str | Product") -> Product:
    """Return the product that ``spelling`` names: ``times``, or ``lmul4[+ROUNDING][+formula]``.

    >>> product("lmul3")(torch.tensor([1.25]), torch.tensor([1.25]))
    tensor([1.6250], dtype=torch.float64)
    """
    if isinstance(spelling, Product):
        return spelling
    if spelling == "times":
        return TIMES
    name, *options = spelling.split("+")
    width = re.fullmatch(r"lmul([1-9]\d?)", name)
    if width is None:
        raise InputError(
            f"unknown product {spelling!r}: expected times or lmul1 to lmul23, e.g. lmul4 or lmul3+formula"
        )
    modes = [o for o in options if o != "formula"]
    if len(modes) > 1 or len(options) > len({*options}):
        raise InputError(f"product {spelling!r}: expected at most one rounding and 'formula' behind its width")
    return LMul(int(width[1]), rounding(modes[0]) if modes else TOWARD_ZERO, "formula" not in options)
