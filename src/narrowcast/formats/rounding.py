"""Rounding modes, as pure functions on fixed-point magnitudes.

A real magnitude is written as an integer ``n`` with ``shift`` fractional bits: ``n / 2**shift`` counts the codes of a
format, so rounding means choosing one of the two neighbouring integers. Because the functions see only integers they
are exact, the same on every device, and shared by every format: "even" means an even *code*, which for a float is an
even significand, and stays well defined for formats without mantissa bits (e8m0), as in IEEE P3109.

Bits below the fixed point are folded into the last bit by the caller (a *sticky* bit), so no mode rounds twice;
for the modes that count draws against the fraction they are dropped.
Random bits are an argument, never a hidden state: see `philox`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from narrowcast.errors import InputError, nearest

RANDOM_BITS = 16  # resolution of one random draw; the bias of stochastic rounding is below 2**-16 of a step

Round = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]
RealRound = Callable[[Tensor, Tensor | None], Tensor]


def _nearest_even(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    odd = (n >> shift).bitwise_and_(1)  # in place from here on: a fresh large tensor costs more than the arithmetic
    return odd.add_(n).add_((1 << (shift - 1)) - 1).bitwise_right_shift_(shift)


def _nearest_away(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + (1 << (shift - 1))).bitwise_right_shift_(shift)


def _nearest_zero(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) - 1)).bitwise_right_shift_(shift)


def _nearest_up(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) + sign)) >> shift


def _nearest_down(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    return (n + ((1 << (shift - 1)) - 1 - sign)) >> shift


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
        draw = _required(random) >> (RANDOM_BITS - bits)
        draw = draw << (shift - bits) if shift >= bits else draw >> (bits - shift)
        return (n + draw) >> shift

    return round_


def _equal(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    """Go up for one half of all draws, whatever the fraction; exact values stay (pychop's mode 6)."""
    return (n + (_required(random) >> (RANDOM_BITS - 1)) * ((1 << shift) - 1)) >> shift


def _flush(n: Tensor, shift: int, sign: Tensor, random: Tensor | None) -> Tensor:
    """Round to nearest even, but below the first code go up to it for a share n / 2**shift of all draws.

    Of the 16 bits of a draw the leading 15 count, or one fewer than ``n`` has: the last bit of ``n`` is sticky.
    """
    dithered = _stochastic(max(min(RANDOM_BITS, shift) - 1, 1))(n, shift, sign, random)
    return torch.where(n < 1 << shift, dithered, _nearest_even(n, shift, sign, random))


# --- the same modes on real numbers: values on a uniform grid need no codes, and a third of the passes ---


def _real_nearest_away(u: Tensor, random: Tensor | None) -> Tensor:
    return u.abs().sub_(0.5).floor_().add_(1.0).copysign_(u)  # adding a half would round just below it


def _real_nearest_zero(u: Tensor, random: Tensor | None) -> Tensor:
    return u.abs().sub_(0.5).ceil_().copysign_(u)


def _real_nearest_up(u: Tensor, random: Tensor | None) -> Tensor:
    return (u * 2.0).floor_().add_(1.0).mul_(0.5).floor_().copysign_(u)  # by half steps: no sum is rounded


def _real_nearest_down(u: Tensor, random: Tensor | None) -> Tensor:
    return (u * 2.0).ceil_().sub_(1.0).mul_(0.5).ceil_().copysign_(u)


def _real_odd(u: Tensor, random: Tensor | None) -> Tensor:
    half = u * 0.5  # floor and ceiling of it add up to u where u is an integer, to the odd neighbour elsewhere
    return half.floor().add_(half.ceil_())


def _real_stochastic(bits: int) -> RealRound:
    def round_(u: Tensor, random: Tensor | None) -> Tensor:
        draw = _required(random) >> (RANDOM_BITS - bits)
        floor = u.abs().mul_(float(1 << bits)).floor_()
        return floor.add_(draw).mul_(1 / (1 << bits)).floor_().copysign_(u)

    return round_


def _real_equal(u: Tensor, random: Tensor | None) -> Tensor:
    floor = u.abs().floor_()
    up = u.abs().ceil_().sub_(floor).mul_(_required(random) >> (RANDOM_BITS - 1))
    return floor.add_(up).copysign_(u)


def _real_flush(u: Tensor, random: Tensor | None) -> Tensor:
    dithered = _real_stochastic(RANDOM_BITS - 1)(u, random)
    return torch.where(u.abs() < 1.0, dithered, u.round())  # only below the first code is less than one step


def _required(random: Tensor | None) -> Tensor:
    if random is None:
        raise InputError("stochastic rounding needs random bits: pass seed= or a Stream")
    return random


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
        sticky: whether ``n`` must show in its last bit that something below it was cut off; the modes that compare a
            draw with the fraction take the plain floor, so that no value goes up more often than its fraction.
        real: the same mode on real numbers, ``(u, random) -> float32`` integers with the sign of ``u``: signed float32
            steps below 2**7, so that each sum is exact; NaN stays. None where only ``function`` exists.
        dither: for modes that take their draws from the number itself: the draws of float32 numbers, int32. Formats
            ask for them; such a mode is not random.
    """

    name: str
    function: Round
    overflow: str = "leaves"
    random: bool = False
    sticky: bool = True
    real: RealRound | None = None
    dither: Callable[[Tensor], Tensor] | None = None

    @property
    def drawn(self) -> bool:
        """Whether it compares draws, of whatever origin, with the place between two codes."""
        return self.random or self.dither is not None

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


NEAREST_EVEN = Rounding("nearest-even", _nearest_even, real=lambda u, _: u.round())


def _dithered(name: str, bits: int) -> Rounding:
    return Rounding(name, _stochastic(bits), random=True, sticky=False, real=_real_stochastic(bits))


_MODES = {
    mode.name: mode
    for mode in (
        NEAREST_EVEN,
        Rounding("nearest-away", _nearest_away, real=_real_nearest_away),
        Rounding("nearest-zero", _nearest_zero, real=_real_nearest_zero),
        Rounding("nearest-up", _nearest_up, real=_real_nearest_up),
        Rounding("nearest-down", _nearest_down, real=_real_nearest_down),
        Rounding("toward-zero", _toward_zero, overflow="stays", real=lambda u, _: u.trunc()),
        Rounding("up", _up, overflow="up", real=lambda u, _: u.ceil()),
        Rounding("down", _down, overflow="down", real=lambda u, _: u.floor()),
        Rounding("odd", _odd, overflow="stays", real=_real_odd),
        _dithered("stochastic", RANDOM_BITS),
        *(_dithered(f"stochastic-{r}", r) for r in range(1, RANDOM_BITS)),
        Rounding("stochastic-equal", _equal, random=True, real=_real_equal),
        Rounding("stochastic-flush", _flush, random=True, real=_real_flush),
    )
}


# --- modes that take their draws from the number itself ---


def _hybrid(x: Tensor, strict: bool) -> Tensor:
    """Return HiFloat8's draws, to be compared by 14 bits; see `rounding`."""
    bits = x.view(torch.int32)
    exponent = (bits >> 23 & 0xFF) - 127
    draw = torch.where(exponent.abs() < 4, 1 << 13, (1 << 14) - int(strict) - (bits & 0x3FFF))
    return draw.masked_fill(exponent < -23, 0) << (RANDOM_BITS - 14)


def _self_dithered(name: str, strict: bool) -> Rounding:
    return replace(_dithered(name, 14), random=False, dither=partial(_hybrid, strict=strict))


_SELF_DITHERED = {m.name: m for m in (_self_dithered("hybrid", True), _self_dithered("hybrid-published", False))}


def roundings() -> dict[str, Rounding]:
    """Return every rounding mode by name.

    ``nearest-even``, ``-away``, ``-zero``, ``-up`` and ``-down`` say where ties go: the last two are the half up of HLS
    fixed point (AP_RND) and its mirror (AP_RND_MIN_INF), as ``down`` is its default, AP_TRN.
    ``stochastic`` goes up with a probability equal to the discarded fraction, to 16 bits; ``stochastic-r`` to r bits (1
    to 15), as hardware with few random bits does. ``stochastic-equal`` goes up with probability 1/2 wherever the value
    is inexact (Higham & Mary 2019's second kind; pychop's mode 6). ``stochastic-flush`` is nearest-even, except that
    what lies below the smallest positive value becomes it with probability x / smallest, else zero: unbiased where
    nearest rounding would flush (the stochastic underflow of Chmiel et al. 2021, "Logarithmic unbiased quantization").
    """
    return dict(_MODES)


def rounding(name: "str | Rounding") -> Rounding:
    """Return the rounding mode called ``name``; raises InputError with the nearest names.

    Beside `roundings`, which see nothing but a number's place between two codes, there is ``hybrid``, HiFloat8's
    rounding of gradients: nearest-away for magnitudes from 1/8 to below 16, where HiFloat8 keeps three bits; elsewhere
    up where the first 14 discarded bits exceed the number's own last 14 bits; to zero below 2**-23.
    ``hybrid-published`` goes up where they are equal, too, as Huawei's code does, which moves exact values whose last
    14 bits are zero. Neither keeps order, and on numbers that were bfloat16 or float16 before both always go up where
    anything is discarded: use ``stochastic`` there.
    """
    if isinstance(name, Rounding):
        return name
    known = _MODES | _SELF_DITHERED
    if name not in known:
        raise InputError(f"unknown rounding {name!r}{nearest(name, known)}")
    return known[name]
