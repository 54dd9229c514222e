"""Device code: values are loaded from a storage and stored in it again, as `storage` defines it, bit for bit.

Values stand in tiles ``[G, 128]``: G groups of neighbours of one flat tensor. Pointers come as int64 addresses, for one
launch serves many tensors.
"""

import triton
import triton.language as tl

from narrowcast.kernels.encode import encode
from narrowcast.kernels.rounding import bits_of, eight_draws, float_of, round_fixed
from narrowcast.kernels.scale import reciprocal, scale_of
from narrowcast.storage.expansion import EXP2, LOG2

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_INF = tl.constexpr(0x7F800000)
_SMALLEST_BITS = tl.constexpr(0x00800000)
_SMALLEST = tl.constexpr(2.0**-126)
_FLOAT32_MAX = tl.constexpr((2 - 2.0**-23) * 2.0**127)
_SIGN = tl.constexpr(-(1 << 31))
_NAN = tl.constexpr(0x7FC00000)
_SQRT_HALF = tl.constexpr(0x3F3504F3)
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_BITS = tl.constexpr(0x4B400000)
_L0, _L1, _L2, _L3, _L4, _L5 = (tl.constexpr(c) for c in LOG2)
_E0, _E1, _E2, _E3 = (tl.constexpr(c) for c in EXP2)


@triton.jit
def log2(x):
    """Return `storage.expansion.log2`."""
    bits = bits_of(x)
    exponent = (bits - _SQRT_HALF) >> 23
    f = float_of(bits - (exponent << 23)) - 1.0
    total = (((((f * _L5 + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0) * f
    return total + exponent.to(tl.float32)


@triton.jit
def exp2(x):
    """Return `storage.expansion.exp2`."""
    x = tl.maximum(x, -126.0)
    shifted = x + _ROUNDER
    f = x - (shifted - _ROUNDER)
    power = (((f * _E3 + _E2) * f + _E1) * f + _E0) * f + 1.0
    return float_of(bits_of(power) + ((bits_of(shifted) - _ROUNDER_BITS) << 23))


@triton.jit
def pointer(address, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Return an int64 address as a pointer to what KIND names (16-bit floats as int16)."""
    if KIND == "float32":
        p = address.to(tl.pointer_type(tl.float32))
    elif KIND == "uint8":
        p = address.to(tl.pointer_type(tl.uint8))
    else:
        p = address.to(tl.pointer_type(tl.int16))
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def widened(raw, KIND: tl.constexpr):
    """Return what memory holds as float32 values; bytes as they are."""
    if KIND == "bfloat16":
        x = float_of(raw.to(tl.int32) << 16)
    elif KIND == "float16":
        x = raw.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        x = raw
    return x


@triton.jit
def nearest_bfloat16(x):
    """Return the bits (int16) of float32 ``x`` rounded to bfloat16, ties to even; NaN stays NaN."""
    if _IN_PTX:
        code = x.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:
        bits = bits_of(x)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        code = tl.where((bits & 0x7FFFFFFF) > _INF, 0x7FC0, rounded).to(tl.int16)
    return code


@triton.jit
def narrowed(x, KIND: tl.constexpr):
    """Return float32 values as memory of KIND holds them, rounded to nearest even."""
    if KIND == "bfloat16":
        raw = nearest_bfloat16(x)
    elif KIND == "float16":
        raw = x.to(tl.float16).to(tl.int16, bitcast=True)
    else:
        raw = x
    return raw


@triton.jit
def byte_values(raw, K: tl.constexpr, L: tl.constexpr):
    """Return the float32 values of 8-bit codes (uint8); those of NaN may be left to the scale, which is NaN too."""
    if L.converts:  # two codes to two float16, which hold every value of e4m3fn and e5m2
        name: tl.constexpr = "e4m3x2" if K.element.mantissa == 3 else "e5m2x2"
        value = tl.inline_asm_elementwise(
            f"""{{ .reg .b16 a, b, w, x, y, z; .reg .b32 p, q; mov.b32 {{a, b}}, $4;
            cvt.rn.f16x2.{name} p, a; cvt.rn.f16x2.{name} q, b; mov.b32 {{w, x}}, p; mov.b32 {{y, z}}, q;
            cvt.f32.f16 $0, w; cvt.f32.f16 $1, x; cvt.f32.f16 $2, y; cvt.f32.f16 $3, z; }}""",
            "=f,=f,=f,=f,r", [raw], tl.float32, True, 4,
        )  # fmt: skip
    else:
        value = float_of(((raw.to(tl.int32) << 24) >> K.byte_shift) & K.byte_mask) * K.element.unbase
    return value


@triton.jit
def byte_codes(y, draw, K: tl.constexpr, L: tl.constexpr):
    """Return the 8-bit codes (uint8) of float32 ``y``."""
    E: tl.constexpr = K.element
    R: tl.constexpr = K.rounding
    W: tl.constexpr = K.way
    if L.converts and not K.random:  # one instruction for two; it saturates and rounds to nearest even
        name: tl.constexpr = "e4m3x2" if K.element.mantissa == 3 else "e5m2x2"
        code = tl.inline_asm_elementwise(
            f"""{{ .reg .b16 a, b; cvt.rn.satfinite.{name}.f32 a, $2, $1; cvt.rn.satfinite.{name}.f32 b, $4, $3;
            mov.b32 $0, {{a, b}}; }}""",
            "=r,f,f,f,f", [y], tl.uint8, True, 4,
        )  # fmt: skip
    else:
        grid = (E.max, E.anchor_least, tl.full([L.groups, 128], E.rebase, tl.float32))
        code = ((encode(y, grid, draw, E, R, W, False) >> 24) & 0xFF).to(tl.uint8)
    return code


@triton.jit
def load_kept(addresses, at, group, inside, old_scale, K: tl.constexpr, PARAMETER: tl.constexpr, L: tl.constexpr):
    """Return the float32 values ``[G, 128]`` that a storage holds.

    Args:
        addresses: of codes (or of the parameter that carries them), scales, powers.
        at: index of each element, [G, 128]; ``inside``: whether it exists.
        group: index of each group, [G].
        old_scale: the scale of the whole tensor, where K.by_tensor.
        K: facts of the storage; PARAMETER: type of the parameter; L: layout.
    """
    kind: tl.constexpr = PARAMETER if K.carried else K.codes
    S: tl.constexpr = K.scale
    raw = tl.load(pointer(addresses[0], kind, L.aligned) + at, mask=inside, other=0)
    x = widened(raw, kind)
    if K.carried and kind != K.codes:  # a float32 parameter: what its codes stand for
        x = widened(nearest_bfloat16(x), "bfloat16")
    if K.kind == "parts":
        low = tl.load(pointer(addresses[1], "bfloat16", L.aligned) + at, mask=inside, other=0)
        x = x + widened(low, "bfloat16")
    elif K.kind == "scaled":
        if K.codes == "uint8":
            x = byte_values(x, K, L)
        if K.by_tensor:
            x = x * old_scale
        else:
            x = x * load_scale(addresses[1], group, S)[:, None]
    elif K.kind == "expanded":
        x = load_expanded(x, addresses, group, K, L)
    return x


@triton.jit
def power_value(code):
    """Return the powers of two of e8m0 codes (int32)."""
    return float_of(tl.where(code == 0, 0x400000, tl.where(code == 255, _NAN, code << 23)))


@triton.jit
def load_scale(address, at, S: tl.constexpr):
    """Return the float32 scales at ``at``."""
    if S.kind == "power":
        scale = power_value(tl.load(pointer(address, "uint8", False) + at).to(tl.int32))
    else:
        scale = tl.load(pointer(address, "float32", False) + at)
    return scale


@triton.jit
def load_expanded(code, addresses, group, K: tl.constexpr, L: tl.constexpr):
    """Return the values of expanded codes; `Expanded.load` line by line."""
    q = byte_values(code, K, L)
    magnitude = tl.abs(q)
    largest = tl.load(pointer(addresses[1], "float32", False) + group)
    powers = tl.load(pointer(addresses[2], "uint8", False) + group).to(tl.float32)
    depth = (log2(tl.maximum(magnitude, _SMALLEST)) - K.log2_max) * tl.div_rn(16.0, powers)[:, None]
    share = tl.where(magnitude == 0.0, 0.0, exp2(depth))
    signed = float_of(bits_of(share) | (bits_of(q) & _SIGN))
    return signed * largest[:, None]


@triton.jit
def draws_for(first, tensor, step, k0, k1, G: tl.constexpr):
    """Return the draws [G, 128] of the elements from ``first`` (int64, a multiple of 8) on."""
    counter = (first >> 3) + tl.arange(0, G)[:, None] * 16 + tl.arange(0, 16)[None, :]
    d = eight_draws(counter, tensor, step, k0, k1)
    a = tl.join(tl.join(d[0], d[4]), tl.join(d[2], d[6]))
    b = tl.join(tl.join(d[1], d[5]), tl.join(d[3], d[7]))
    return tl.reshape(tl.join(a, b), [G, 128])


@triton.jit
def largest_bits(x):
    """Return the bits (int32 [G]) of the largest magnitude of each group; NaN wins."""
    return tl.max(bits_of(x) & 0x7FFFFFFF, axis=1)


@triton.jit
def store_kept(x, addresses, at, group, inside, padded, groups, whole, draw, K: tl.constexpr, L: tl.constexpr):
    """Store float32 ``x`` [G, 128] and return the values that it becomes.

    Args as for `load_kept`; padded: whether an element exists in the padded codes; groups: how many groups there are;
    whole: bits of the tensor's largest magnitude, where K.by_tensor; draw: random bits, where K.random.
    Codes that the parameter carries are its caller's to store.
    """
    if K.kind == "wide":
        value = x
        if not K.carried:
            tl.store(pointer(addresses[0], "float32", L.aligned) + at, x, mask=inside)
    elif K.kind == "bare":
        if K.random:
            bits = bits_of(x)
            R: tl.constexpr = K.rounding
            code = round_fixed(bits & 0x7FFFFFFF, 16, bits >> 31, draw, R) | ((bits >> 31) & 0x8000)
            code = tl.where(
                (bits & 0x7FFFFFFF) >= _INF, (bits >> 16) | ((bits & 0x7FFFFFFF) > _INF).to(tl.int32) << 6, code
            )
            code = code.to(tl.int16)
        else:
            code = nearest_bfloat16(x)
        value = widened(code, "bfloat16")
        if not K.carried:
            tl.store(pointer(addresses[0], "bfloat16", L.aligned) + at, code, mask=inside)
    elif K.kind == "parts":
        high = nearest_bfloat16(x)
        value = widened(high, "bfloat16")
        rest = tl.where((bits_of(value) & 0x7FFFFFFF) < _INF, x - value, 0.0)
        if not K.carried:
            tl.store(pointer(addresses[0], "bfloat16", L.aligned) + at, high, mask=inside)
        tl.store(pointer(addresses[1], "bfloat16", L.aligned) + at, nearest_bfloat16(rest), mask=inside)
        if not K.carried:
            value = value + widened(nearest_bfloat16(rest), "bfloat16")
    elif K.kind == "scaled":
        value = store_scaled(x, addresses, at, group, inside, padded, groups, whole, draw, K, L)
    else:
        tl.static_assert(K.kind == "expanded")
        value = store_expanded(x, addresses, at, group, padded, groups, K, L)
    return value


@triton.jit
def store_scaled(x, addresses, at, group, inside, padded, groups, whole, draw, K: tl.constexpr, L: tl.constexpr):
    """Store codes and scales of a cast; return their values."""
    E: tl.constexpr = K.element
    S: tl.constexpr = K.scale
    exists = inside if K.by_tensor else padded
    stored, into, poisoned = scale_of(whole if K.by_tensor else largest_bits(x), 0, S, None)
    back = power_value(stored) if S.kind == "power" else stored
    if not K.by_tensor:
        if S.kind == "power":
            tl.store(pointer(addresses[1], "uint8", False) + group, stored.to(tl.uint8), mask=group < groups)
        else:
            tl.store(pointer(addresses[1], "float32", False) + group, stored, mask=group < groups)
        into, back, poisoned = into[:, None], back[:, None], poisoned[:, None]
    y = x * into
    if K.codes == "float16":
        code = y.to(tl.float16).to(tl.int16, bitcast=True)
        poison = 0x7E00
    else:
        code = byte_codes(y, draw, K, L)
        poison = (E.positive_nan >> 24) & 0xFF
    if K.by_tensor:
        anywhere = poisoned
    else:
        anywhere = tl.max(poisoned.to(tl.int32)) > 0
    if anywhere:
        code = tl.where(poisoned, poison, code).to(code.dtype)
    kind: tl.constexpr = K.codes
    tl.store(pointer(addresses[0], kind, L.aligned) + at, code, mask=exists)
    value = widened(code, "float16") if K.codes == "float16" else byte_values(code, K, L)
    return value * back


@triton.jit
def store_expanded(x, addresses, at, group, padded, groups, K: tl.constexpr, L: tl.constexpr):
    """Store the codes, maxima and powers of an expansion, `Expanded.store` line by line; return ``x``, unread."""
    E: tl.constexpr = K.element
    magnitude = tl.abs(x)
    bits = bits_of(magnitude)
    top = tl.max(bits, axis=1)
    finite = top < _INF
    low = tl.min(tl.where(bits == 0, _INF, bits), axis=1)
    largest = float_of(tl.where(top < _SMALLEST_BITS, 0, top))
    some = finite & (largest > 0.0)
    ratio = tl.div_rn(tl.where(some, largest, 1.0), tl.where(some, float_of(low), 1.0))
    binades = tl.maximum(log2(tl.minimum(tl.maximum(ratio, 1.0), _FLOAT32_MAX)), 2.0**-20)
    sixteenths = tl.minimum(tl.maximum(tl.floor(tl.div_rn(K.sixteenths, binades)), 1.0), 255.0)
    share = magnitude * tl.minimum(reciprocal(largest), _FLOAT32_MAX)[:, None]
    y = exp2(log2(tl.maximum(share, _SMALLEST)) * (sixteenths * 0.0625)[:, None]) * E.max
    y = tl.where((bits == 0) | (some == 0)[:, None], 0.0, y)
    y = float_of(bits_of(y) | (bits_of(x) & _SIGN))
    tl.store(pointer(addresses[0], "uint8", L.aligned) + at, byte_codes(y, bits, K, L), mask=padded)
    kept = float_of(tl.where(finite, bits_of(largest), _NAN))
    tl.store(pointer(addresses[1], "float32", False) + group, kept, mask=group < groups)
    tl.store(pointer(addresses[2], "uint8", False) + group, sixteenths.to(tl.uint8), mask=group < groups)
    return x
