"""Tapered floats, logarithms and codebooks, one number at a time: the third part of the reference implementations.

Codes are decoded from strings of bits, values are fractions, logarithms are compared through integer powers. Nothing here
is shared with narrowcast; format objects are only asked for their fields.
"""

import math
from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache

import mpmath
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


@lru_cache(maxsize=1 << 16)
def power_of_two(exponent: Fraction) -> Fraction:
    """2**exponent to 200 bits."""
    with mpmath.workprec(200):
        _, mantissa, power, _ = mpmath.power(2, mpmath.mpf(exponent.numerator) / exponent.denominator)._mpf_
    return int(mantissa) * Fraction(2) ** power


def float32(x: Fraction) -> Fraction:
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


# --- where a cell of magnitudes is halved ---

NOTHING = Fraction(1, 2**1100)  # stands for what is next to zero, below every float64


@lru_cache(maxsize=1 << 17)
def middle(fmt, low: float, high: float, code_low: int) -> Fraction:
    """The middle of the cell between two magnitudes, the lower one of code ``code_low``."""
    match type(fmt).__name__:
        case "Posit" if low == 0 and not fmt.flush:
            return NOTHING  # nothing but zero becomes zero
        case "Posit" if low > 0:
            return posit_value(format(code_low, f"0{fmt.width}b") + "1", fmt.es)
        case "Logarithmic" if low > 0:
            return power_of_two(Fraction(2 * (code_low % 2 ** (fmt.width - 1)) + 1, 2 * fmt.gamma) - fmt.bias)
    return (Fraction(low) + Fraction(high)) / 2


def side(x: Fraction, middle: Fraction) -> int:
    """-1, 0, 1 for ``x`` below, on, above the middle."""
    return (x > middle) - (x < middle)


# --- rounding ---

RUNG, RUNG_CODE = 1.5 * 2**15, 0x6F  # HiFloat8's infinity stands where this number would


class Steps:
    """The finite values of a format, ascending, each with its code and its steps from zero; and the rungs of an open end.

    Each value is a float64, which holds it exactly.
    """

    def __init__(self, fmt):
        self.code = {} if not opens(fmt) else {RUNG: RUNG_CODE, -RUNG: RUNG_CODE}
        zeros = []
        for code in range(2**fmt.bits):
            value = value_of(fmt, code)
            if not isinstance(value, str):
                self.code.setdefault(float(value), code)
                zeros += [math.copysign(1, value)] if value == 0 else []
        self.signed_zero = len(set(zeros)) == 2
        self.values = sorted(self.code)
        nearest = min(range(len(self.values)), key=lambda i: (abs(self.values[i]), -self.values[i]))
        self.steps = [abs(i - nearest) for i in range(len(self.values))]

    def middle(self, fmt, i: int) -> Fraction:
        """The middle of the cell above value ``i``: of its magnitudes where both are at most zero."""
        low, high = self.values[i], self.values[i + 1]
        low, high = (-high, -low) if high <= 0 else (low, high)
        return middle(fmt, low, high, self.code.get(low, 0))


@lru_cache(maxsize=64)
def steps_of(fmt) -> Steps:
    """The steps of a format, found once."""
    return Steps(fmt)


def opens(fmt) -> bool:
    """Whether finite numbers can become infinite."""
    return type(fmt).__name__ == "HiFloat8" and not fmt.saturate


def leave(result: float, infinite: bool, out: bool) -> float:
    """What a rung of an open end becomes: infinity, or the largest value where the mode stays."""
    return math.copysign(math.inf if infinite or out else 2.0**15, result)


def round_tapered(fmt, x: float, mode: str, draw: int, goes_up, leaves_range) -> float:
    """The value that ``x`` becomes; NaN stays NaN. ``goes_up`` and ``leaves_range`` are those of `references`."""
    if math.isnan(x) or (math.isinf(x) and type(fmt).__name__ == "Posit"):
        return math.nan
    known = steps_of(fmt)
    values = known.values
    i = min(max(bisect_right(values, x) - 1, 0), len(values) - 2)
    low, high = values[i], values[i + 1]
    if x <= low or x >= high:
        result = low if x <= low else high
    else:
        downwards = high <= 0
        near, far = (i + 1, i) if downwards else (i, i + 1)
        exact = abs(Fraction(x) - Fraction(values[near]))
        place = exact / abs(Fraction(values[far]) - Fraction(values[near]))
        if not mode.startswith("stochastic"):
            place = Fraction(2 + side(Fraction(-x if downwards else x), known.middle(fmt, i)), 4)
        up = goes_up(mode, known.steps[near] % 2 == 1, place, downwards, draw, known.steps[near] == 0)
        result = values[far if up else near]
    if opens(fmt) and abs(result) == RUNG:
        return leave(result, math.isinf(x), leaves_range(mode, x < 0))
    return (math.copysign(0.0, x) if known.signed_zero else 0.0) if result == 0 else result


@lru_cache(maxsize=64)
def arrays_of(fmt) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values, the first float64 from each middle on, whether it is the middle, and steps: as arrays."""
    known = steps_of(fmt)
    middles = [known.middle(fmt, i) for i in range(len(known.values) - 1)]
    near = [float(m) for m in middles]
    sides = [side(Fraction(n), m) for n, m in zip(near, middles, strict=True)]
    from_middle = [math.nextafter(n, math.inf) if s < 0 else n for n, s in zip(near, sides, strict=True)]
    return np.array(known.values), np.array(from_middle), np.array(sides) == 0, np.array(known.steps)


def round_many(fmt, x: np.ndarray, mode: str, goes_up, leaves_range) -> np.ndarray:
    """`round_tapered` for many float64 numbers and a deterministic mode; zeros have no sign."""
    values, middles, ties, steps = arrays_of(fmt)
    cell = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 2)
    low, high = values[cell], values[cell + 1]
    down = high <= 0
    size = np.where(down, -x, x)
    place = np.where(size < middles[cell], 0, np.where((size > middles[cell]) | ~ties[cell], 2, 1))
    odd = steps[np.where(down, cell + 1, cell)] % 2
    table = np.array(
        [[[goes_up(mode, o == 1, Fraction(p, 4), d == 1) for d in (0, 1)] for o in (0, 1)] for p in (1, 2, 3)]
    )
    up = table[place, odd, down.astype(int)] ^ down
    result = np.where(x <= low, low, np.where((x >= high) | up, high, low))
    if opens(fmt):
        out = np.isinf(x) | np.where(x < 0, leaves_range(mode, True), leaves_range(mode, False))
        result = np.where(np.abs(result) == RUNG, np.copysign(np.where(out, np.inf, 2.0**15), result), result)
    if type(fmt).__name__ == "Posit":
        result[np.isinf(x)] = np.nan
    return np.where(np.isnan(x), np.nan, result)
