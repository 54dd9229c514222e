"""Slow, plain reference implementations, written to be read.

One number at a time, in exact rational arithmetic, straight from the definitions. Nothing here is shared with
narrowcast, so an agreement is evidence. Format objects are only asked for their fields (widths, bias, specials).
"""

import math
from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache

from tests.tapered_references import round_tapered

DRAW_BITS = 16
MASK32 = 0xFFFFFFFF


# --- rounding one number ---


def goes_up(
    mode: str,
    odd_below: bool,
    fraction: Fraction,
    negative: bool,
    draw: int = 0,
    first: bool = False,
    bits: int = DRAW_BITS,
) -> bool:
    """Whether a magnitude ``fraction`` of the way from one code to the next becomes the next (0 < fraction < 1).

    ``draw`` is one 16-bit draw, of which ``stochastic-r`` uses the r leading bits. ``first``: below the first
    code, where ``stochastic-flush`` uses one bit fewer than the ``bits`` there are.
    """
    half = Fraction(1, 2)
    if mode == "stochastic-equal":
        return draw >= 2 ** (DRAW_BITS - 1)
    if mode == "stochastic-flush":
        mode = f"stochastic-{bits - 1}" if first else "nearest-even"
    if mode.startswith("stochastic"):
        used = int(mode.partition("-")[2] or DRAW_BITS)
        return math.floor(fraction * 2**used) + (draw >> (DRAW_BITS - used)) >= 2**used
    return {
        "nearest-even": fraction > half or (fraction == half and odd_below),
        "nearest-away": fraction >= half,
        "nearest-zero": fraction > half,
        "nearest-up": fraction > half or (fraction == half and not negative),
        "nearest-down": fraction > half or (fraction == half and negative),
        "toward-zero": False,
        "up": not negative,
        "down": negative,
        "odd": not odd_below,
    }[mode]


def leaves_range(mode: str, negative: bool) -> bool:
    """Whether a magnitude that rounded beyond the largest one leaves the finite range (IEEE 754-2019, 7.4)."""
    return {"toward-zero": False, "odd": False, "up": not negative, "down": negative}.get(mode, True)


# --- minifloats ---


def minifloat_magnitude(fmt, code: int) -> Fraction:
    """Value of the magnitude code ``e << M | m``, as if every code were a number."""
    exponent, mantissa = divmod(code, 2**fmt.mantissa)
    fraction = Fraction(mantissa, 2**fmt.mantissa)
    if exponent == 0 and fmt.bottom.value == "subnormal":
        return fraction * Fraction(2) ** (1 - fmt.bias)
    if exponent == 0 and fmt.bottom.value == "zero":
        return Fraction(0)
    return (1 + fraction) * Fraction(2) ** (exponent - fmt.bias)


def last_code(fmt) -> int:
    """Magnitude code of the largest finite number."""
    all_codes = 2 ** (fmt.exponent + fmt.mantissa)
    reserved = {"ieee": 2**fmt.mantissa, "fn": 1, "fnuz": 0, "none": 0, "p3109": 1 if fmt.signed else 2}
    return all_codes - 1 - reserved[fmt.specials.value]


@lru_cache(maxsize=64)
def ladder_of(fmt) -> "Ladder":
    """The ladder of a format, built once."""
    return Ladder(fmt)


class Ladder:
    """The non-negative numbers of a minifloat, ascending, with their codes and one rung above the largest."""

    def __init__(self, fmt):
        skipped = range(1, 2**fmt.mantissa) if fmt.bottom.value == "zero" else range(0)
        self.codes = [c for c in range(last_code(fmt) + 2) if c not in skipped]
        self.values = [minifloat_magnitude(fmt, c) for c in self.codes]

    def round(self, magnitude: Fraction, mode: str, negative: bool, draw: int = 0) -> int:
        """Return the code that ``magnitude`` rounds to; the extra rung stands for everything beyond the range."""
        if magnitude <= self.values[0]:
            return self.codes[0]
        if magnitude >= self.values[-1]:
            return self.codes[-1]
        i = bisect_right(self.values, magnitude) - 1
        low, high = self.values[i], self.values[i + 1]
        fraction = (magnitude - low) / (high - low)
        up = fraction > 0 and goes_up(mode, self.codes[i] % 2 == 1, fraction, negative, draw, i == 0)
        return self.codes[i + up]


def round_minifloat(fmt, x: float, mode: str, draw: int = 0) -> float:
    """The value that ``x`` becomes in ``fmt``, with the sign of zero; NaN stays NaN."""
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x) or (fmt.bottom.value == "normal" and x == 0):
        return math.nan
    if not fmt.signed and x < 0:
        return 0.0 if fmt.specials.value == "none" else math.nan
    sign = -1.0 if negative and fmt.signed else 1.0
    top = last_code(fmt)
    keeps = fmt.saturate or fmt.specials.value == "none"
    if math.isinf(x):
        code, leaves = top + 1, not keeps
    else:
        code = ladder_of(fmt).round(abs(Fraction(x)), mode, negative, draw)
        leaves = code > top and not keeps and leaves_range(mode, negative)
    if leaves:
        return sign * math.inf if fmt.specials.value in ("ieee", "p3109") else math.nan
    value = float(minifloat_magnitude(fmt, min(code, top)))
    return value if value == 0 and fmt.specials.value in ("fnuz", "p3109") else sign * value


# --- integers ---


def round_integer(fmt, x: float, mode: str, draw: int = 0) -> float:
    """The value that ``x`` becomes on the grid k * 2**-fraction, saturated; no zero is negative."""
    if math.isnan(x):
        return math.nan
    high = 2 ** (fmt.width - fmt.signed) - 1
    low = 0 if not fmt.signed else -high if fmt.symmetric else -high - 1
    if math.isinf(x):
        return (high if x > 0 else low) / 2.0**fmt.fraction
    negative, magnitude = x < 0, abs(Fraction(x)) * 2**fmt.fraction
    floor = math.floor(magnitude)
    fraction = magnitude - floor
    k = floor + (fraction > 0 and goes_up(mode, floor % 2 == 1, fraction, negative, draw, floor == 0))
    return min(max(-k if negative else k, low), high) / 2.0**fmt.fraction


def round_one(fmt, x: float, mode: str, draw: int = 0) -> float:
    """Round ``x`` to ``fmt``, whichever family it is of."""
    match type(fmt).__name__:
        case "Integer":
            return round_integer(fmt, x, mode, draw)
        case "Minifloat":
            return round_minifloat(fmt, x, mode, draw)
    return round_tapered(fmt, x, mode, draw, goes_up, leaves_range)


# --- random bits ---


def philox_words(counter, key) -> tuple[int, int, int, int]:
    """Philox 4x32-10 on Python integers (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def draw_of_element(seed: int, tensor: int, step: int, element: int) -> int:
    """The 16-bit draw of one element: counter (block low, block high, tensor, step), eight draws a block."""
    block, lane = divmod(element, 8)
    words = philox_words((block & MASK32, block >> 32, tensor, step), (seed & MASK32, seed >> 32))
    return words[lane // 2] >> (16 * (lane % 2)) & 0xFFFF


# --- packing ---


def pack_bits(codes: list[int], bits: int) -> bytes:
    """A little-endian bit stream: element 0 in the lowest bits of byte 0."""
    stream = sum(code << (i * bits) for i, code in enumerate(codes))
    return stream.to_bytes(-(-len(codes) * bits // 8), "little")
