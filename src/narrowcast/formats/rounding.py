"""Rounding modes, as pure functions on fixed-point magnitudes.

A real magnitude is written as an integer ``n`` with ``shift`` fractional bits: ``n / 2**shift`` counts the codes of a
format, so rounding means choosing one of the two neighbouring integers. Because the functions see only integers they
are exact, the same on every device, and shared by every format: "even" means an even *code*, which for a float is an
even significand, and stays well defined for formats without mantissa bits (e8m0), as in IEEE P3109.

Bits below the fixed point are folded into the last bit by the caller (a *sticky* bit), so no mode rounds twice;
for the stochastic modes they are dropped.
Random bits are an argument, never a hidden state: see `philox`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError, nearest

RANDOM_BITS = 16  # resolution of one random draw; the bias of stochastic rounding is below 2**-16 of a step

Round = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]


def _nearest_even(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    odd = (n >> shift).bitwise_and_(1)  # in place from here on: a fresh large tensor costs more than the arithmetic
    return odd.add_(n).add_((1 << (shift - 1)) - 1).bitwise_right_shift_(shift)


def _nearest_away(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + (1 << (shift - 1))).bitwise_right_shift_(shift)


def _nearest_zero(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) - 1)).bitwise_right_shift_(shift)


def _toward_zero(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return n >> shift


def _up(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + (~sign & ((1 << shift) - 1))) >> shift


def _down(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + (sign & ((1 << shift) - 1))) >> shift


def _odd(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    mask = (1 << shift) - 1
    return (n >> shift) | (((n & mask) + mask) >> shift)  # the sum carries where anything is discarded


def _stochastic(bits: int) -> Round:
    """Add ``bits`` random bits below the last kept bit, then truncate: what hardware does.

    A value with discarded fraction f goes up for exactly floor(f * 2**bits) of the 2**bits draws (for codes of more
    than 14 bits, whose fixed point is shorter than 16: of as many bits as it has).
    """

    def round_(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
        if random is None:
            raise InputError("stochastic rounding needs random bits: pass seed= or a Stream")
        draw = random >> (RANDOM_BITS - bits)
        draw = draw << (shift - bits) if shift >= bits else draw >> (bits - shift)
        return (n + draw) >> shift

    return round_


@dataclass(frozen=True)
class Rounding:
    """One rounding mode.

    Attributes:
        name: its name in a cast's spelling.
        function: ``(n, shift, sign, random) -> int32``; ``n`` int32 magnitudes with ``shift >= 1`` fractional
            bits, ``sign`` int32 (0, or -1 where the value is negative), ``random`` int32 draws of 16 bits or None.
        overflow: what becomes of a finite value beyond the largest one in a format that does not saturate:
            ``"leaves"`` (to infinity or NaN), ``"stays"`` (at the maximum), ``"up"`` or ``"down"`` (leaves only on
            that side), after IEEE 754-2019, 7.4.
        random: whether it draws random bits.
    """

    name: str
    function: Round
    overflow: str = "leaves"
    random: bool = False

    def __call__(self, n: Tensor, shift: int, sign: Tensor, random: Tensor | None = None) -> Tensor:
        """Round ``n / 2**shift`` to an integer; ``shift == 0`` returns ``n``."""
        return self.function(n, shift, sign, random) if shift else n

    def leaves(self, sign: Tensor) -> Tensor:
        """Return (bool) where a finite value beyond the maximum leaves the finite range."""
        match self.overflow:
            case "leaves":
                return torch.ones_like(sign, dtype=torch.bool)
            case "up":
                return sign == 0
            case "down":
                return sign != 0
            case _:
                return torch.zeros_like(sign, dtype=torch.bool)

    def __str__(self) -> str:
        return self.name


NEAREST_EVEN = Rounding("nearest-even", _nearest_even)

_MODES = {
    mode.name: mode
    for mode in (
        NEAREST_EVEN,
        Rounding("nearest-away", _nearest_away),
        Rounding("nearest-zero", _nearest_zero),
        Rounding("toward-zero", _toward_zero, overflow="stays"),
        Rounding("up", _up, overflow="up"),
        Rounding("down", _down, overflow="down"),
        Rounding("odd", _odd, overflow="stays"),
        Rounding("stochastic", _stochastic(RANDOM_BITS), random=True),
        *(Rounding(f"stochastic-{r}", _stochastic(r), random=True) for r in range(1, RANDOM_BITS)),
    )
}


def roundings() -> dict[str, Rounding]:
    """Return every rounding mode by name; ``stochastic-r`` uses r random bits (1 to 15), ``stochastic`` 16."""
    return dict(_MODES)


def rounding(name: "str | Rounding") -> Rounding:
    """Return the rounding mode called ``name``; raises InputError with the nearest names."""
    if isinstance(name, Rounding):
        return name
    if name not in _MODES:
        raise InputError(f"unknown rounding {name!r}{nearest(name, _MODES)}")
    return _MODES[name]
