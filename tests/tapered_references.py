"""Tapered floats, logarithms and codebooks, one number at a time: the third part of the reference implementations.

Codes are decoded from strings of bits, values are fractions, logarithms are compared through integer powers. Nothing here
is shared with narrowcast; format objects are only asked for their fields.
"""

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np

# --- what each code stands for: a number with a sign for zero, "inf", "-inf" or "nan" ---


def posit_value(bits: str, es: int) -> Fraction | str:
    """Decode a posit from its string of bits."""
    if "1" not in bits:
        return Fraction(0)
    if "1" not in bits[1:]:
        return "nan"
    if bits[0] == "1":
        return -posit_value(format(2 ** len(bits) - int(bits, 2), f"0{len(bits)}b"), es)
    tail = bits[1:]
    run = len(tail) - len(tail.lstrip(tail[0]))
    k = run - 1 if tail[0] == "1" else -run
    rest = tail[run + 1 :]
    exponent, fraction = rest[:es].ljust(es, "0"), rest[es:]
    mantissa = 1 + Fraction(int(fraction or "0", 2), 2 ** len(fraction))
    return mantissa * Fraction(2) ** (k * 2**es + int(exponent or "0", 2))


def hif8_value(bits: str) -> Fraction | str:
    """Decode a HiFloat8 from its string of bits: sign, dot, exponent, mantissa."""
    special = {"00000000": Fraction(0), "10000000": "nan", "01101111": "inf", "11101111": "-inf"}
    if bits in special:
        return special[bits]
    sign, rest = (-1) ** int(bits[0]), bits[1:]
    if rest.startswith("0000"):
        return sign * Fraction(2) ** (int(rest, 2) - 23)
    dots = {"11": 4, "10": 3, "01": 2, "001": 1, "0001": 0}
    dot = next(d for d in dots if rest.startswith(d))
    field = rest[len(dot) : len(dot) + dots[dot]]
    mantissa = rest[len(dot) + dots[dot] :]
    exponent = (-1) ** int(field[0]) * int("1" + field[1:], 2) if field else 0
    return sign * (1 + Fraction(int(mantissa, 2), 2 ** len(mantissa))) * Fraction(2) ** exponent


def power_of_two(exponent: Fraction) -> Decimal:
    """2**exponent to 60 digits."""
    with localcontext(prec=60):
        return Decimal(2) ** (Decimal(exponent.numerator) / Decimal(exponent.denominator))


def float32(x: Decimal | float) -> Fraction:
    """The float32 nearest to ``x`` (never near a tie between two)."""
    return Fraction(float(np.float32(float(x))))


def lns_value(fmt, code: int) -> Fraction | str:
    """The float32 nearest to 2**(k / gamma - bias)."""
    sign, k = divmod(code, 2 ** (fmt.width - 1))
    if k == 0:
        return "nan" if sign else Fraction(0)
    return (-1) ** sign * float32(power_of_two(Fraction(k, fmt.gamma) - fmt.bias))


def value_of(fmt, code: int) -> Fraction | float | str:
    """What ``code`` stands for; -0.0 where it is a zero with a sign."""
    bits = format(code, f"0{fmt.bits}b")
    match type(fmt).__name__:
        case "Posit":
            return posit_value(bits, fmt.es)
        case "HiFloat8":
            return hif8_value(bits)
        case "Logarithmic":
            return lns_value(fmt, code)
        case "Codebook":
            value = float(np.float32(fmt.table[code])) if code < len(fmt.table) else math.nan
            return "nan" if math.isnan(value) else value if value == 0 else Fraction(value)
    raise AssertionError(fmt)


# --- where a cell is halved: -1, 0, 1 for a magnitude below, on, above the middle ---


def compare(a, b) -> int:
    return (a > b) - (a < b)


def side(fmt, x: Fraction, low: Fraction, high: Fraction, code_low: int) -> int:
    """Which side of the middle of the cell [low, high] of magnitudes ``x`` lies on."""
    match type(fmt).__name__:
        case "Posit" if low == 0 and not fmt.flush:
            return 1  # nothing but zero becomes zero
        case "Posit" if low > 0:
            return compare(x, posit_value(format(code_low, f"0{fmt.width}b") + "1", fmt.es))
        case "Logarithmic" if low > 0:
            twice = Fraction(2 * (code_low % 2 ** (fmt.width - 1)) + 1, 2 * fmt.gamma) - fmt.bias
            with localcontext(prec=60):
                return compare(Decimal(x.numerator) / Decimal(x.denominator), power_of_two(twice))
    return compare(x, (low + high) / 2)


# --- rounding ---


class Steps:
    """The finite values of a format, ascending, each with its code and its steps from zero."""

    def __init__(self, fmt):
        found = {}
        for code in range(2**fmt.bits):
            value = value_of(fmt, code)
            if not isinstance(value, str):
                found.setdefault((Fraction(value), math.copysign(1, value) if value == 0 else 1), code)
        self.zeros = {sign for (value, sign) in found if value == 0}
        self.code = {value: code for (value, _), code in found.items()}
        self.values = sorted(self.code)
        nearest = min(range(len(self.values)), key=lambda i: (abs(self.values[i]), -self.values[i]))
        self.steps = [abs(i - nearest) for i in range(len(self.values))]


@lru_cache(maxsize=64)
def steps_of(fmt) -> Steps:
    """The steps of a format, found once."""
    return Steps(fmt)


def round_tapered(fmt, x: float, mode: str, draw: int, goes_up, leaves_range) -> float:
    """The value that ``x`` becomes; NaN stays NaN. ``goes_up`` and ``leaves_range`` are those of `references`."""
    if math.isnan(x):
        return math.nan
    kind, known = type(fmt).__name__, steps_of(fmt)
    values, opens = known.values, kind == "HiFloat8" and not fmt.saturate
    if math.isinf(x) and (opens or kind == "Posit"):
        return x if opens else math.nan
    rung = Fraction(3, 2) * 2**15
    if opens and abs(x) > values[-1]:
        return beyond(x, values[-1], rung, mode, draw, goes_up, leaves_range)
    if x <= values[0] or x >= values[-1]:
        return float(values[0] if x <= values[0] else values[-1])
    exact = Fraction(x)
    i = bisect_right(values, exact) - 1
    low, high = values[i], values[i + 1]
    if exact == low:
        return math.copysign(0.0, x) if low == 0 and known.zeros == {-1.0, 1.0} else float(low)
    downwards = high <= 0
    near, far = (i + 1, i) if downwards else (i, i + 1)
    place = (exact - values[near]) / (values[far] - values[near])
    if not mode.startswith("stochastic"):
        ends = (-high, -low) if downwards else (low, high)
        where = side(
            fmt, -exact if downwards else exact, *ends, known.code[abs(values[near])] if kind != "Codebook" else 0
        )
        place = Fraction(2 + where, 4)
    up = goes_up(mode, known.steps[near] % 2 == 1, place, downwards, draw, known.steps[near] == 0)
    result = values[far if up else near]
    return math.copysign(0.0, x) if result == 0 and known.zeros == {-1.0, 1.0} else float(result)


def beyond(x: float, top: Fraction, rung: Fraction, mode: str, draw: int, goes_up, leaves_range) -> float:
    """A finite magnitude above the largest value of a format whose infinity stands on ``rung``."""
    place = (abs(Fraction(x)) - top) / (rung - top)
    out = leaves_range(mode, x < 0) and (place >= 1 or goes_up(mode, False, place, x < 0, draw))
    return math.copysign(math.inf if out else float(top), x)
