"""Small NumPy encoders written from the definitions, with places where a bug can be planted. They share nothing with narrowcast.

A minifloat's magnitudes are listed from its fields; an encoder looks up the place of abs(x) among them. ``turn`` decides a
value that lies between two neighbours: it gets (x, low, high, index of low) in float64 and says where the higher is taken.
"""

import numpy as np

E4M3FN = (4, 3, 7, 126)  # exponent bits, mantissa bits, bias, code of the maximum
E4M3 = (4, 3, 7, 119)
E2M1FN = (2, 1, 1, 7)
E5M2 = (5, 2, 15, 123)


def magnitudes(fields) -> np.ndarray:
    _, mantissa, bias, top = fields
    codes = np.arange(top + 1)
    e, m = codes >> mantissa, codes & ((1 << mantissa) - 1)
    scale = np.exp2(np.maximum(e, 1).astype(np.float64) - bias - mantissa)
    return (m + np.where(e > 0, 1 << mantissa, 0)) * scale


def to_even(x, low, high, index):
    middle = (low + high) / 2
    return (x > middle) | ((x == middle) & (index % 2 == 1))


def to_away(x, low, high, index):
    return x >= (low + high) / 2


def to_zero(x, low, high, index):
    return x > (low + high) / 2


def truncated(x, low, high, index):
    return np.zeros_like(x, dtype=bool)


def encode(x, fields=E4M3FN, turn=to_even) -> np.ndarray:
    """Saturating codes; NaN becomes the code after the maximum where there is one, else zero."""
    exponent, mantissa, _, top = fields
    table = magnitudes(fields)
    x = np.asarray(x, dtype=np.float64)
    size = np.where(np.isnan(x), 0.0, np.minimum(np.abs(x), table[-1]))
    low = np.minimum(np.searchsorted(table, size, side="right") - 1, top - 1)
    code = low + np.where(size == table[-1], 1, turn(size, table[low], table[low + 1], low) & (size > table[low]))
    all_ones = (1 << (exponent + mantissa)) - 1
    code = np.where(np.isnan(x), all_ones if top < all_ones else 0, code)
    sign = np.signbit(x) & ~(np.isnan(x) & (top == all_ones))
    return (code + (sign << (exponent + mantissa))).astype(np.uint8)


def decode(codes, fields=E4M3FN) -> np.ndarray:
    """Values of codes; what lies past the maximum is infinity once where the top exponent is reserved, else NaN."""
    exponent, mantissa, _, top = fields
    codes = np.asarray(codes).astype(np.int64)
    magnitude = codes & ((1 << (exponent + mantissa)) - 1)
    value = magnitudes(fields)[np.minimum(magnitude, top)]
    reserved = (1 << (exponent + mantissa)) - 1 - top > 1
    value = np.where(magnitude > top, np.where((magnitude == top + 1) & reserved, np.inf, np.nan), value)
    return np.where(codes >> (exponent + mantissa), -value, value)


def dequantized(codes, scales, fields=E2M1FN) -> np.ndarray:
    size = codes.shape[-1] // scales.shape[-1]
    power = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127)).repeat(size, -1)
    with np.errstate(over="ignore"):
        return (decode(codes, fields) * power).astype(np.float32)


def blocks_of(x, rule, fields=E2M1FN, size=32, turn=to_even):
    """MX: (codes, e8m0 scales); ``rule`` turns amax (float64, positive) into an exponent."""
    rows = np.asarray(x, dtype=np.float64).reshape(-1, size)
    amax = np.abs(rows).max(-1)
    with np.errstate(all="ignore"):
        exponent = np.clip(np.where(amax > 0, rule(np.where(np.isfinite(amax) & (amax > 0), amax, 1.0)), 0), -127, 127)
    scale = np.where(np.isfinite(amax), exponent + 127, 255).astype(np.uint8)
    codes = encode(np.where(np.isfinite(amax), 1.0, 0.0)[:, None] * rows / np.exp2(exponent)[:, None], fields, turn)
    return codes.reshape(x.shape), scale.reshape(*x.shape[:-1], -1)


def log2_floor(x) -> np.ndarray:
    return np.frexp(x)[1] - 1.0


RULES = {
    "floor": lambda amax: log2_floor(amax) - 2,
    "ceil": lambda amax: log2_floor(amax) - 2 + (amax > 1.5 * np.exp2(log2_floor(amax))),
    "ceil-exponent": lambda amax: log2_floor(amax) - 2 + (amax > np.exp2(log2_floor(amax))),
    "even": lambda amax: log2_floor(amax) - 2 + (amax >= 1.75 * np.exp2(log2_floor(amax))),
    "nearest": lambda amax: log2_floor(amax) - 2 + (amax**2 >= 2 * np.exp2(2 * log2_floor(amax))),
}


def pack(codes, swap=False) -> np.ndarray:
    low, high = codes[..., ::2], codes[..., 1::2]
    return (high | low << 4 if swap else low | high << 4).astype(np.uint8)
