"""Reading the token of a scale rule."""

import re

from narrowcast.errors import InputError
from narrowcast.formats import Minifloat, format
from narrowcast.scaling.by_sign import BySign
from narrowcast.scaling.divided import Divided, DividedTwoLevel
from narrowcast.scaling.double import Double
from narrowcast.scaling.history import Delayed
from narrowcast.scaling.rule import ScaleRule
from narrowcast.scaling.scales import Narrow, One, PowerOfTwo, TwoLevel, Wide
from narrowcast.scaling.zero_point import ZeroPoint


def scale_rule(text: str) -> ScaleRule:
    """Parse a scale token: ``one``, ``fp32``, ``fp32-delayed16``, ``fp32-headroom22``, ``e8m0[-RULE][-headroomN]``,
    ``FLOAT``, ``FLOAT+fp32``, ``FORMAT+fp32xN[-mean]`` (double quantization), ``divide-CARRIER[-fixedX]``,
    ``FLOAT+divide-CARRIER[-fixedX]``, any of one level with ``-signs``, and ``fp32-zeroN``
    or ``FLOAT-zeroN`` (a zero point of N bits).
    """
    zero = re.fullmatch(r"(.+)-zero(\d+)", text)
    if zero:
        return ZeroPoint(scale_rule(zero[1]), int(zero[2]))
    if text.endswith("-signs"):
        return BySign(scale_rule(text.removesuffix("-signs")))
    double = re.fullmatch(r"(.+)\+fp32x([1-9]\d*)(-mean)?", text)
    if double:
        return Double(format(double[1]), int(double[2]), bool(double[3]))
    base, _, rule = text.partition("-")
    if base == "one" and not rule:
        return One()
    if base == "divide":
        return Divided(*_carrier(rule))
    room = re.fullmatch(r"(.*?)-?headroom([1-9]\d*)", rule)
    rule, headroom = (room[1], int(room[2])) if room else (rule, 0)
    if base == "fp32":
        return Wide(Delayed.parse(rule) if rule else None, headroom)
    if base in ("e8m0", "ue8m0", "e8m0fnu"):
        return PowerOfTwo(rule or "floor", headroom)
    name, plus, second = text.partition("+")
    known = format(name)
    divides = second.startswith("divide-")
    if not isinstance(known, Minifloat) or not (divides or second in ("", "fp32")):
        raise InputError(
            f"unknown scale {text!r}: expected one, fp32, e8m0[-RULE], or a float format such as e4m3fn or float16, "
            "optionally with +fp32"
        )
    if known.nan_code is None:
        raise InputError(
            f"scale {text!r}: {known} has no NaN to mark a tile that is not finite; ue4m3 or e4m3fn has one"
        )
    if divides:
        return DividedTwoLevel(known, *_carrier(second.removeprefix("divide-")))
    return TwoLevel(known) if plus else Narrow(known)


def _carrier(text: str) -> tuple[str, float | None]:
    """Parse ``CARRIER[-fixedX]``."""
    name, dash, fixed = text.partition("-fixed")
    try:
        return name, float(fixed) if dash else None
    except ValueError:
        raise InputError(f"scale divide-{text}: the fixed scale {fixed!r} is no number") from None
