"""Device code: a tile's largest magnitude becomes its scale, rule by rule as in `scaling.scales`.

Maxima are float32 bits as int32, where NaN is larger than infinity and infinity larger than every number.
"""

import triton
import triton.language as tl

from narrowcast.kernels.encode import nearest_scale
from narrowcast.kernels.rounding import bits_of, float_of

_INF = tl.constexpr(0x7F800000)
_NAN = tl.constexpr(0x7FC00000)
_FLOAT32_MAX = tl.constexpr((2 - 2.0**-23) * 2.0**127)
_SMALLEST = tl.constexpr(2.0**-126)
_SQRT_HALF = tl.constexpr(0x3504F4)


@triton.jit
def reciprocal(x):
    """Return 1 / x, correctly rounded."""
    return tl.div_rn(1.0, x)


@triton.jit
def quotient(a, B: tl.constexpr):
    """Return a / B, correctly rounded; dividing by a constant in any other way multiplies by its reciprocal."""
    return tl.div_rn(a, B)


@triton.jit
def scale_of(amax, whole, S: tl.constexpr, F: tl.constexpr):
    """Return (what is stored, the float32 factor into the format, whether the tile is poisoned) for ``amax``.

    Args:
        amax: int32 bits of the tile's largest magnitude.
        whole: the same of the tensor's, for two levels.
        S: `ScaleFacts`.
        F: facts of the format that scales are rounded to.
    """
    poisoned = amax >= _INF
    if S.kind == "power":
        stored, into = power_of_two(amax, poisoned, S)
    elif S.kind == "narrow":
        stored, into = narrow(amax, poisoned, S, F)
    elif S.kind == "two-level":
        poisoned = poisoned | (whole >= _INF)
        stored, into = second_level(amax, whole, poisoned, S, F)
    else:
        tl.static_assert(S.kind == "wide")
        exact = tl.minimum(tl.maximum(quotient(float_of(amax), S.divisor), _SMALLEST), _FLOAT32_MAX)
        exact = tl.where(amax == 0, 1.0, exact)
        into = reciprocal(exact)
        stored = float_of(tl.where(poisoned, _NAN, bits_of(exact)))
    return stored, into, poisoned


@triton.jit
def power_of_two(amax, poisoned, S: tl.constexpr):
    """Return (e8m0 code, factor) under the rule of `PowerOfTwo`."""
    exponent, mantissa = (amax >> 23) - 127, amax & 0x7FFFFF
    if (S.rule == "floor") | (S.rule == "four-thirds"):
        exponent = exponent - S.top
    elif S.rule == "ceil":
        exponent = exponent - S.top + (mantissa > S.top_mantissa).to(tl.int32)
    elif S.rule == "ceil-exponent":
        exponent = exponent - S.top + (mantissa > 0).to(tl.int32)
    elif S.rule == "even":
        exponent = ((amax + S.half) >> 23) - 127 - S.top
    else:
        tl.static_assert(S.rule == "nearest")
        exponent = exponent - S.top + (mantissa >= _SQRT_HALF).to(tl.int32)
    code = tl.minimum(tl.maximum(exponent, -127), 127) + 127
    code = tl.where(amax == 0, 127, code)
    into = float_of(tl.where(code == 254, 0x400000, (254 - code) << 23))  # 2**-127 is subnormal
    if S.rule == "four-thirds":
        into = into * 0.75
    return tl.where(poisoned, 255, code), into


@triton.jit
def merged(stored, FACTOR: tl.constexpr, E: tl.constexpr):
    """Return (one factor for FACTOR times 2**k, where the grid lies then) for the power of two 2**-k ``stored``.

    Two multiplications, by a transform's factor and by a power of two, round once: where nothing is subnormal they can
    be one. So the values are moved by 2**k only as far as that holds, -110 to 60, or for tiny values, whose product
    with the factor may be subnormal and must be rounded as such, not at all; and the grid is moved by the rest.
    What lies below 2**-66 of the format's values rounds to zero either way.
    """
    k = 127 - stored
    moved = tl.where(k > 60, 0, tl.maximum(k, -110))
    rest = moved - k
    power = float_of(tl.where(rest < -126, 0x400000, (rest + 127) << 23))
    grid = (power * E.max, (rest << 23) + E.anchor_least, float_of((127 - rest) << 23) * E.rebase)
    return float_of((moved + 127) << 23) * FACTOR, grid


@triton.jit
def narrow(amax, poisoned, S: tl.constexpr, F: tl.constexpr):
    """Return (code, factor) of a scale rounded to a narrow float, as `Narrow`."""
    exact = tl.minimum(quotient(float_of(amax), S.divisor), F.max)
    code, value = nearest_scale(tl.where(amax == 0, 1.0, exact), F, S)
    into = tl.minimum(reciprocal(value), _FLOAT32_MAX)
    return tl.where(poisoned, F.nan_code, code), into


@triton.jit
def first_level(whole, S: tl.constexpr):
    """Return the float32 factor that brings the tensor's maximum to the top of element times scale, as `TwoLevel`."""
    encode = tl.minimum(tl.div_rn(S.numerator, float_of(whole)), _FLOAT32_MAX)
    return tl.where(whole == 0, 1.0, encode)


@triton.jit
def second_level(amax, whole, poisoned, S: tl.constexpr, F: tl.constexpr):
    """Return (code, factor) of a tile under the tensor's factor, in the order of `TwoLevel`."""
    encode = first_level(whole, S)
    exact = tl.minimum(float_of(amax) * (encode * S.inverse_max), F.max)
    code, block = nearest_scale(exact, F, S)
    into = tl.minimum(reciprocal(block * reciprocal(encode)), _FLOAT32_MAX)
    return tl.where(poisoned, F.nan_code, code), into


@triton.jit
def tensor_scale(whole, S: tl.constexpr):
    """Return the float32 scale of the whole tensor, of two levels."""
    scale = reciprocal(first_level(whole, S))
    return float_of(tl.where(whole >= _INF, _NAN, bits_of(scale)))
