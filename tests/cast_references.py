"""Scale rules and block casts, one number at a time: the second half of the reference implementations.

Exponents are found in exact rational arithmetic; what is defined as a float32 operation is one float32 operation.
"""

import math
from fractions import Fraction

import numpy as np

from tests.references import round_one

FLOAT32_MAX = float(np.finfo(np.float32).max)


def f32(x: float) -> float:
    """The float32 nearest to ``x``, a double that holds a sum, product or quotient of two float32s."""
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def floor_log2(x: Fraction) -> int:
    """The k with 2**k <= x < 2**(k + 1)."""
    k = x.numerator.bit_length() - x.denominator.bit_length()
    return k if Fraction(2) ** k <= x else k - 1


def shared_exponent(rule: str, amax: float, largest: float, precision: int) -> int:
    """Exponent of the power-of-two scale for a finite amax > 0, before it is clamped to e8m0's range.

    ``largest`` is the element format's maximum and ``precision`` its mantissa bits.
    """
    exact, top = Fraction(amax), floor_log2(Fraction(largest))
    floor = floor_log2(exact)
    match rule:
        case "floor" | "four-thirds":
            return floor - top
        case "ceil":  # the smallest k with amax <= largest * 2**k
            k = floor - top - 1
            while exact > Fraction(largest) * Fraction(2) ** k:
                k += 1
            return k
        case "ceil-exponent":
            return floor + (exact > Fraction(2) ** floor) - top
        case "even":  # round amax half up to the element's precision, then floor
            step = Fraction(2) ** (floor - precision)
            return floor_log2(math.floor(exact / step + Fraction(1, 2)) * step) - top
        case "three-quarters":
            return floor + (exact / Fraction(2) ** floor >= Fraction(7, 4)) - top
        case "nearest":
            return floor + ((exact / Fraction(2) ** floor) ** 2 >= 2) - top
    raise AssertionError(rule)


def power_of_two_scale(rule: str, amax: float, fmt) -> tuple[list[float], float]:
    """(factors that multiply back, factor that multiplies in); ``headroomN`` behind the rule: N binades larger."""
    if not math.isfinite(amax):
        return [math.nan], math.nan
    rule, _, headroom = rule.partition("headroom")
    rule = rule.removesuffix("-") or "floor"
    k = shared_exponent(rule, amax, fmt.max, fmt.precision) + int(headroom or 0) if amax else 0
    k = min(max(k, -127), 127)
    if rule == "four-thirds":
        return [f32(2.0**k * f32(4 / 3))], 0.75 * 2.0**-k
    return [2.0**k], 2.0**-k


def wide_scale(amax: float, fmt, headroom: int = 0) -> tuple[list[float], float]:
    """A float32 scale: amax / max, at least the smallest normal float32; ``headroom`` binades larger."""
    if not math.isfinite(amax):
        return [math.nan], math.nan
    scale = 1.0 if amax == 0 else max(f32(amax / fmt.max * 2.0**headroom), 2.0**-126)
    return [scale], f32(1 / scale)


def narrow_scale(amax: float, fmt, scale_format) -> tuple[list[float], float]:
    """A scale in a narrow float, nearest even; a tile whose scale rounds to 0 is flushed."""
    if not math.isfinite(amax):
        return [math.nan], math.nan
    scale = 1.0 if amax == 0 else round_one(scale_format, f32(amax / fmt.max), "nearest-even")
    return [scale], min(f32(1 / scale), FLOAT32_MAX) if scale else FLOAT32_MAX


def two_level_scale(amax: float, whole: float, fmt, scale_format) -> tuple[list[float], float]:
    """NVFP4: a narrow scale per tile under a float32 scale per tensor, in TransformerEngine's order of operations."""
    if not (math.isfinite(amax) and math.isfinite(whole)):
        return [math.nan], math.nan
    encode = 1.0 if whole == 0 else min(f32(fmt.max * scale_format.max / whole), FLOAT32_MAX)
    decode = f32(1 / encode)
    block = round_one(scale_format, f32(amax * f32(encode * f32(1 / fmt.max))), "nearest-even")
    product = f32(block * decode)
    return [block, decode], min(f32(1 / product), FLOAT32_MAX) if product else FLOAT32_MAX


EPSILON = {"fp32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def divided_scale(amax: float, fmt, carrier: str, format_of):
    """(factors back, function that divides): amax / half the range, all in the carrier; its epsilon in place of 0."""
    if not math.isfinite(amax):
        return [math.nan], lambda v: math.nan
    scale = carried(carried(amax, carrier, format_of) / half_range(fmt), carrier, format_of) or EPSILON[carrier]
    return [scale], lambda v: carried(v / scale, carrier, format_of)


def half_range(fmt) -> float:
    """Half the distance between the largest and the smallest value."""
    values = fmt.values() if fmt.bits <= 8 else None
    return fmt.max if values is None else (float(values[-1]) - float(values[0])) / 2


def carried(x: float, carrier: str, format_of) -> float:
    """The carrier's number nearest to ``x``, by way of float32 as 16-bit arithmetic goes."""
    return f32(x) if carrier == "fp32" else round_one(format_of(carrier), f32(x), "nearest-even")


def divided_two_level_scale(amax: float, whole: float, fmt, scale_format, carrier: str, format_of):
    """NVFP4 as compressed-tensors computes it."""
    if not (math.isfinite(amax) and math.isfinite(whole)):
        return [math.nan], lambda v: math.nan
    multiplier = f32(fmt.max * scale_format.max / max(whole, 2.0**-126))
    multiplier = multiplier if math.isfinite(multiplier) else 1.0
    inner = carried(carried(amax, carrier, format_of) / fmt.max, carrier, format_of)
    block = round_one(scale_format, f32(inner * multiplier), "nearest-even") or 0.125
    scale = f32(block / multiplier)
    return [scale], lambda v: f32(v / scale)


def tile_scale(spelling: str, amax: float, whole: float, fmt, format_of) -> tuple[list[float], float]:
    """The scale of one tile, by the scale token of a cast's spelling; ``format_of`` looks up a scale format."""
    base, _, rule = spelling.partition("-")
    if base == "divide":
        return divided_scale(amax, fmt, rule, format_of)
    if "+divide" in spelling:
        name, _, carrier = spelling.partition("+divide-")
        return divided_two_level_scale(amax, whole, fmt, format_of(name), carrier, format_of)
    if base == "fp32":
        return wide_scale(amax, fmt, int(rule.removeprefix("headroom") or 0))
    if base == "e8m0":
        return power_of_two_scale(rule or "floor", amax, fmt)
    name, plus, _ = spelling.partition("+")
    return two_level_scale(amax, whole, fmt, format_of(name)) if plus else narrow_scale(amax, fmt, format_of(name))


def double_scales(spelling: str, amaxes: list[float], fmt, format_of) -> list[tuple[list[float], float]]:
    """Double quantization of the scales of all tiles, in order: ``FORMAT+fp32xGROUP[-mean]``."""
    name, _, rest = spelling.partition("+fp32x")
    codes, centred = format_of(name), rest.endswith("-mean")
    group = int(rest.removesuffix("-mean"))
    exact = [f32(a / fmt.max) if math.isfinite(a) else math.nan for a in amaxes]
    mean = f32(math.fsum(exact) / len(exact)) if centred and not any(map(math.isnan, exact)) else 0.0
    mean = math.nan if centred and any(map(math.isnan, exact)) else mean
    found = []
    for start in range(0, len(exact), group):
        off = [f32(s - mean) for s in exact[start : start + group]]
        second = f32(max_or_nan(map(abs, off)) / codes.max) or 1.0
        for d in off:
            code = (
                math.nan
                if math.isnan(second)
                else round_one(codes, f32(d * min(f32(1 / second), FLOAT32_MAX)), "nearest-even")
            )
            back = math.nan if math.isnan(code) else max(f32(f32(code * second) + mean), 0.0)
            found.append(([back], min(f32(1 / back), FLOAT32_MAX) if back else FLOAT32_MAX))
    return found


def tiles_of(rows: int, cols: int, tile: str):
    """Yield the index lists of the elements of each tile of a rows x cols matrix."""
    height, width = {"tensor": (rows, cols), "row": (1, cols)}.get(tile) or (int(n) for n in tile.split("x"))
    for top in range(0, rows, height):
        for left in range(0, cols, width):
            down, across = range(top, min(top + height, rows)), range(left, min(left + width, cols))
            yield [(r, c) for r in down for c in across]


def cast_matrix(x: list[list[float]], fmt, tile: str, scale: str, mode: str, draws, format_of) -> list[list[float]]:
    """What a cast makes of a matrix of float32 numbers: amax, scale, multiply in, round, multiply back."""
    rows, cols = len(x), len(x[0])
    result = [[math.nan] * cols for _ in x]
    whole = max_or_nan(abs(v) for row in x for v in row)
    tiles = list(tiles_of(rows, cols, tile))
    for elements, (above, below) in zip(tiles, scales_of(scale, x, tiles, whole, fmt, format_of), strict=True):
        for r, c in elements:
            back, into, *zero = below if x[r][c] < 0 else above
            entered = into(x[r][c]) if callable(into) else f32(x[r][c] * into)
            entered = f32(entered + zero[0]) if zero else entered
            value = round_one(fmt, entered, mode, draws[r][c] if draws else 0) - (zero[0] if zero else 0)
            for factor in back:
                value = f32(value * factor)
            result[r][c] = value
    return result


def scales_of(scale: str, x, tiles, whole: float, fmt, format_of):
    """Per tile, the scale of the values from 0 up and that of the values below; the same one unless by signs."""
    if "+fp32x" in scale:
        amaxes = [max_or_nan(abs(x[r][c]) for r, c in elements) for elements in tiles]
        return [(one, one) for one in double_scales(scale, amaxes, fmt, format_of)]
    found = []
    for elements in tiles:
        amax = max_or_nan(abs(x[r][c]) for r, c in elements)
        sides = [max_or_nan(max(s * x[r][c], 0.0) for r, c in elements) for s in (1, -1)]
        if "-zero" in scale:
            found.append((zero_point(scale, sides if math.isfinite(amax) else [math.nan] * 2, format_of),) * 2)
            continue
        if not scale.endswith("-signs"):
            sides = [amax, amax]
        elif not math.isfinite(amax):
            sides = [math.nan, math.nan]
        found.append(tuple(tile_scale(scale.removesuffix("-signs"), side, whole, fmt, format_of) for side in sides))
    return found


def zero_point(scale: str, sides: list[float], format_of):
    """(factors back, factor in, the code of zero) of a tile that reaches from -sides[1] to sides[0]."""
    rule, _, width = scale.partition("-zero")
    back, into = tile_scale(rule, f32(sides[0] + sides[1]), 0.0, format_of(f"uint{width}"), format_of)
    if math.isnan(into):
        return back, into, math.nan
    low = -(2 ** (int(width) - 1))
    return back, into, min(max(low + round(f32(sides[1] / back[0])), low), -low - 1)


def max_or_nan(values) -> float:
    """The largest value, NaN if there is one."""
    values = list(values)
    return math.nan if any(math.isnan(v) for v in values) else max(values, default=0.0)
