"""The scale rules that are in use, so that a foreign one can be named: for each family of scales, likelier rules first.

A rule here is a function of (amax ``[n, 1]``, element format) that returns a `Scale`: our own rules' methods, and what
other libraries do otherwise. A new rule is one row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from narrowcast.formats import Format, Minifloat, format
from narrowcast.scaling import Narrow, PowerOfTwo, Scale, ScaleRule, TwoLevel, Wide
from narrowcast.testing.rounder import Choice

Rule = Callable[[Tensor, Format], Scale]
_E8M0 = format("e8m0")
_FLOAT32_MAX = torch.finfo(torch.float32).max


def rules(rule: ScaleRule) -> tuple[Choice[Rule], ...]:
    """Return the rules that store their scales as ``rule`` does, ``rule`` itself first."""
    ours: Choice[Rule] = Choice(_name(rule), rule.scale)
    others: tuple[Choice[Rule], ...]
    match rule:
        case PowerOfTwo():
            others = (*_NAMED, *_POWERS)
        case Narrow():
            others = _narrow(rule.format)
        case TwoLevel():
            others = _two_level(rule.format)
        case Wide():
            others = _WIDE
        case _:
            others = ()
    return (ours, *(other for other in others if other != ours))


def _name(rule: ScaleRule) -> str:
    return f"e8m0 rule {rule.rule}" if isinstance(rule, PowerOfTwo) else f"scale rule {rule}"


# --- what becomes of a block whose largest magnitude is infinite ---


def poisoned(rule: Rule, amax: Tensor, fmt: Format) -> Scale:
    """Apply ``rule``; an amax that is not finite makes the scale NaN."""
    return rule(amax, fmt)


def counted(rule: Rule, amax: Tensor, fmt: Format) -> Scale:
    """Apply an e8m0 ``rule``; an infinite amax counts as 2**128, the number that its bits would be."""
    exponent = rule(torch.where(amax.isinf(), 2.0**127, amax), fmt).stored.int() - 127
    return power_of_two(torch.where(amax.isinf(), exponent + 1, exponent), amax)


def largest(rule: Rule, amax: Tensor, fmt: Format) -> Scale:
    """Apply an e8m0 ``rule``; an infinite amax gets the largest scale."""
    exponent = rule(torch.where(amax.isinf(), 2.0**127, amax), fmt).stored.int() - 127
    return power_of_two(torch.where(amax.isinf(), 127, exponent), amax)


def infinite(rule: Rule, amax: Tensor, fmt: Format) -> Scale:
    """Apply a ``rule`` of float32 scales; an infinite amax makes an infinite scale."""
    scale = rule(amax.clamp_max(_FLOAT32_MAX), fmt)
    value = torch.where(amax.isinf(), amax, scale.stored)
    return Scale(value, (value,), torch.where(amax.isinf(), 0.0, scale.into))


def clamped(rule: Rule, amax: Tensor, fmt: Format) -> Scale:
    """Apply ``rule``; an infinite amax counts as float32's maximum."""
    return rule(amax.clamp_max(_FLOAT32_MAX), fmt)


# --- powers of two ---


def power_of_two(exponent: Tensor, amax: Tensor) -> Scale:
    """Return e8m0 scales of these exponents, clamped to its range; 1 for zeros, NaN for an amax of NaN."""
    code = torch.where(amax == 0, 0, exponent).int().clamp(-127, 127) + 127
    code = torch.where(amax.isnan(), 255, code)
    return Scale(code.to(torch.uint8), (_E8M0.decode(code),), _E8M0.decode(torch.where(code == 255, 255, 254 - code)))


def _by_logarithm(turn: Callable[[Tensor], Tensor], whole: bool) -> Rule:
    """Exponents from a float32 logarithm, which is off by one where it rounds to a whole number.

    ``whole``: of amax / max; otherwise of amax, less the element's top exponent.
    """

    def rule(amax: Tensor, fmt: Format) -> Scale:
        logarithm = torch.log2(amax / torch.full_like(amax, fmt.max) if whole else amax)
        return power_of_two(turn(logarithm).nan_to_num(0.0) - (0 if whole else fmt.top_exponent), _finite_or_nan(amax))

    return rule


def _finite_or_nan(amax: Tensor) -> Tensor:
    return torch.where(amax.isinf(), float("nan"), amax)


def _even(bits: int, spills: bool = False) -> Rule:
    """Floor after rounding amax half up to ``bits`` mantissa bits; ``spills``: NaN where that makes it infinite."""

    def rule(amax: Tensor, fmt: Format) -> Scale:
        field = (amax.view(torch.int32) + (1 << (22 - bits))) >> 23
        spilt = torch.where(field >= 255, float("nan"), amax) if spills else amax
        return power_of_two(field - 127 - fmt.top_exponent, _finite_or_nan(spilt))

    return rule


_NAMED: tuple[Choice[Rule], ...] = tuple(
    Choice(_name(rule), rule.scale)
    for rule in map(PowerOfTwo, ("floor", "ceil", "ceil-exponent", "even", "nearest", "four-thirds"))
)
_POWERS: tuple[Choice[Rule], ...] = (
    *(Choice(f"e8m0 rule even, as for a {n}-bit mantissa", _even(n)) for n in (1, 2, 3)),
    *(
        Choice(f"e8m0 rule even, as for a {n}-bit mantissa, NaN where that rounds amax to 2**128", _even(n, True))
        for n in (1, 2, 3)
    ),
    Choice("e8m0 rule ceil, by a float32 logarithm", _by_logarithm(torch.ceil, whole=True)),
    Choice("e8m0 rule floor, by a float32 logarithm", _by_logarithm(torch.floor, whole=False)),
    Choice("e8m0 rule ceil-exponent, by a float32 logarithm", _by_logarithm(torch.ceil, whole=False)),
    Choice("e8m0 rule nearest, by a float32 logarithm", _by_logarithm(torch.round, whole=False)),
    Choice("e8m0 rule floor of amax / max", _by_logarithm(torch.floor, whole=True)),
    Choice("e8m0 rule nearest to amax / max", _by_logarithm(torch.round, whole=True)),
)


# --- float32 scales, without the guards that ours have: 0, infinity and NaN go where the arithmetic sends them ---


def _quotient(amax: Tensor, fmt: Format) -> Scale:
    scale = amax / torch.full_like(amax, fmt.max)
    return Scale(scale, (scale,), scale.reciprocal())


def _inverse(amax: Tensor, fmt: Format) -> Scale:
    into = torch.full_like(amax, fmt.max) / amax
    return Scale(into.reciprocal(), (into.reciprocal(),), into)


def _codes_halved(less: int) -> Rule:
    """Half the number of an integer's codes, or of the steps between them: 8 or 7.5 for 4 bits."""

    def rule(amax: Tensor, fmt: Format) -> Scale:
        scale = amax / torch.full_like(amax, ((1 << fmt.bits) - less) / 2 * fmt.smallest)
        return Scale(scale, (scale,), scale.reciprocal())

    return rule


def _never_zero(rule: Rule) -> Rule:
    """Put 2**-23, float32's epsilon, where the scale is zero (compressed-tensors)."""

    def guarded(amax: Tensor, fmt: Format) -> Scale:
        scale = rule(amax, fmt).stored
        scale = torch.where(scale == 0, 2.0**-23, scale)
        return Scale(scale, (scale,), scale.reciprocal())

    return guarded


_UNGUARDED: tuple[Choice[Rule], ...] = (
    Choice("scale amax / max, unguarded", _quotient),
    Choice("scale 1 / (max / amax), unguarded", _inverse),
    Choice("scale amax / ((2**bits - 1) / 2), unguarded", _codes_halved(1)),
    Choice("scale amax / (2**bits / 2), unguarded", _codes_halved(0)),
)
_WIDE: tuple[Choice[Rule], ...] = (
    *_UNGUARDED,
    *(Choice(f"{rule.name} but 2**-23 where it is zero", _never_zero(rule.value)) for rule in _UNGUARDED),
)


# --- scales in a narrow float, alone or under a second level ---

Least = Callable[[Tensor], Tensor]


def _floors(fmt: Minifloat) -> tuple[tuple[str, Least], ...]:
    """Return what is done about scales that round to zero, by name ("" for nothing)."""
    return (
        ("", lambda scale: scale),
        (f", at least {fmt.smallest_normal:g}", lambda scale: scale.clamp_min(fmt.smallest_normal)),
        (f", at least {fmt.smallest:g}", lambda scale: scale.clamp_min(fmt.smallest)),
        (", 0.125 where it is zero", lambda scale: torch.where(scale == 0, 0.125, scale)),
    )


def _narrow(fmt: Minifloat) -> tuple[Choice[Rule], ...]:
    def rule(least: Least) -> Rule:
        def scale(amax: Tensor, element: Format) -> Scale:
            value = least(fmt.round((amax / torch.full_like(amax, element.max)).clamp_max(fmt.max)))
            value = torch.where(amax.isfinite(), value, float("nan"))
            return Scale(fmt.encode(value), (value,), value.reciprocal().clamp_max(_FLOAT32_MAX))

        return scale

    return tuple(Choice(f"scale amax / max in {fmt}{text}", rule(least)) for text, least in _floors(fmt))


def _two_level(fmt: Minifloat) -> tuple[Choice[Rule], ...]:
    """Return the orders of operations of other libraries, unguarded; ours is TransformerEngine's."""

    def divided(least: Least) -> Rule:
        """Tensor scale = amax / (max * max); block = (amax / max) / tensor scale (torchao)."""

        def scale(amax: Tensor, element: Format) -> Scale:
            tensor = amax.amax() / (element.max * fmt.max)
            block = least(fmt.round((amax / torch.full_like(amax, element.max) / tensor).clamp_max(fmt.max)))
            into = (torch.ones_like(tensor) / tensor) / block
            return Scale(fmt.encode(block), (block, tensor), into, tensor)

        return scale

    def multiplied(least: Least) -> Rule:
        """Global scale = max * max / amax; block = global scale * (amax / max) (compressed-tensors)."""

        def scale(amax: Tensor, element: Format) -> Scale:
            whole = (element.max * fmt.max) / amax.amax().clamp_min(2.0**-126)  # torch multiplies by a reciprocal
            whole = whole.nan_to_num(1.0, 1.0, 1.0)
            block = least(fmt.round((whole * (amax / torch.full_like(amax, element.max))).clamp_max(fmt.max)))
            return Scale(fmt.encode(block), (block / whole,), (block / whole).reciprocal(), whole.reciprocal())

        return scale

    orders = (
        ("block scale = (amax / max) / tensor scale", divided),
        ("block scale = (amax / max) * global scale", multiplied),
    )
    return tuple(Choice(f"{name}{text}", order(least)) for name, order in orders for text, least in _floors(fmt))
