"""Device code: a float32 becomes a code, as `Minifloat.encode` and `Integer.encode` say.

Codes come out *top-aligned*: in the leading bits of an int32, whatever stands below. So a sign bit stays where it is,
and a funnel shift puts a code into its word.
"""

import triton
import triton.language as tl

from narrowcast.kernels.rounding import leaves, round_fixed

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INF = tl.constexpr(0x7F800000)
_TOP = tl.constexpr(-(1 << 31))


@triton.jit
def bits_of(x):
    """Return the bits of float32 as int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """Return int32 bits as float32."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def multiply_toward_zero(a, POWER: tl.constexpr, INVERSE: tl.constexpr):
    """Return ``a * POWER`` (a >= 0, a power of two at most 1 and its inverse) rounded toward zero; subnormals kept."""
    if _IN_PTX:
        power = tl.full(a.shape, POWER, tl.float32)
        product = tl.inline_asm_elementwise("mul.rz.f32 $0, $1, $2;", "=f,f,f", [a, power], tl.float32, True, 1)
    else:
        near = a * POWER
        product = float_of(bits_of(near) - (near * INVERSE > a).to(tl.int32))
    return product


@triton.jit
def shifted_in(word, code, BITS: tl.constexpr):
    """Return ``word`` moved up by BITS, with the leading BITS of ``code`` below."""
    if _IN_PTX:  # one funnel shift, which the compiler takes apart into masks and merges of 2.4 instructions a code
        both = tl.inline_asm_elementwise(
            f"shf.l.wrap.b32 $0, $1, $2, {BITS};", "=r,r,r", [code, word], tl.int32, True, 1
        )
    else:
        both = (word << BITS) | (code.to(tl.uint32, bitcast=True) >> (32 - BITS)).to(tl.int32, bitcast=True)
    return both


@triton.jit
def shifted_to(n, draw, SHIFT: tl.constexpr):
    """Return ``n + (draw << SHIFT)``."""
    if _IN_PTX:  # one instruction; left to itself the compiler shifts, masks and adds
        found = tl.inline_asm_elementwise(
            f"mad.lo.s32 $0, $1, {1 << SHIFT}, $2;", "=r,r,r", [draw, n], tl.int32, True, 1
        )
    else:
        found = n + (draw << SHIFT)
    return found


@triton.jit
def encode(y, draw, E: tl.constexpr, R: tl.constexpr, NAN: tl.constexpr):
    """Return the top-aligned codes of float32 ``y``; NaN inputs get their own code if NAN, else anything."""
    if E.family == "integer":
        code = encode_integer(y, draw, E, R, NAN)
    elif E.adder & (R.mode == "nearest-even"):
        code = signed(y, bits_of(nearest_by_adder(tl.minimum(tl.abs(y), E.max), E) * E.rebase), E)
    elif E.plain & (R.mode == "stochastic") & (E.draw_shift >= 0):
        code = signed(y, shifted_to(rebased(y, E, False), draw & R.draw_mask, E.draw_shift), E)
    elif E.plain & ((not R.random) | (E.draw_shift >= 0)):
        code = signed(y, round_fixed(rebased(y, E, R.sticky), E.shift, bits_of(y) >> 31, draw, R) << E.shift, E)
    else:
        code = encode_float(y, draw, E, R) << (32 - E.bits)
    if NAN and E.family == "float":
        nan = tl.where(bits_of(y) < 0, E.negative_nan, E.positive_nan)
        code = tl.where((bits_of(y) & _MAGNITUDE) > _INF, nan, code)
    return code


@triton.jit
def nearest_by_adder(a, E: tl.constexpr):
    """Return ``a`` (0 to the format's maximum) rounded to nearest even.

    The float32 adder rounds: beside a large enough power of two, the *anchor*, its last bit is one step of the format.
    Two integer and two float instructions, then an exact rebasing; in integers alone, ties and subnormals take 10.
    """
    anchor = float_of(tl.maximum((bits_of(a) & _INF) + E.anchor_step, E.anchor_least))
    return (a + anchor) - anchor


@triton.jit
def rebased(y, E: tl.constexpr, STICKY: tl.constexpr):
    """Return the magnitude as bits of the float32 whose exponent field is the format's; its leading bits are the code.

    What float32 cannot hold below is cut off; with STICKY the last bit remembers it.
    """
    a = tl.minimum(tl.abs(y), E.max)
    moved = multiply_toward_zero(a, E.rebase, E.unbase)
    bits = bits_of(moved)
    if STICKY:
        bits = bits | (moved * E.unbase < a).to(tl.int32)
    return bits


@triton.jit
def signed(y, bits, E: tl.constexpr):
    """Return sign and code: rebased ``bits`` moved up to the sign of ``y``."""
    moved = bits << (8 - E.exponent)
    if _IN_PTX:  # one instruction: bits of y where the mask is 1, else of moved; the compiler takes two
        code = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, 0x80000000, 0xe4;", "=r,r,r", [bits_of(y), moved], tl.int32, True, 1
        )
    else:
        code = (bits_of(y) & _TOP) | (moved & _MAGNITUDE)
    if E.one_zero:
        code = tl.where((moved & _MAGNITUDE) >> (32 - E.bits) == 0, 0, code)
    return code


@triton.jit
def encode_float(y, draw, E: tl.constexpr, R: tl.constexpr):
    """Return plain codes the general way, line by line as `Minifloat.encode`; NaN becomes anything."""
    bits = bits_of(y)
    magnitude, sign = bits & _MAGNITUDE, bits >> 31
    code = magnitude_code(magnitude, sign, draw, E, R)
    if E.saturate:
        code = tl.minimum(code, E.max_code)
    elif not (E.carries & (R.overflow == "leaves")):
        beyond = (leaves(sign, R) & (code > E.max_code)) | (magnitude == _INF)
        code = tl.where(beyond, E.beyond_code, tl.minimum(code, E.max_code))
    if E.signed:
        marked = code | (sign & E.sign_bit)
        if E.one_zero:
            marked = tl.where(code == 0, code, marked)
        code = marked
    else:
        invalid = (sign != 0) & (magnitude > 0)
        if E.bottom == "normal":
            invalid = invalid | (magnitude == 0)
        code = tl.where(invalid, E.invalid_code, code)
    return code


@triton.jit
def magnitude_code(magnitude, sign, draw, E: tl.constexpr, R: tl.constexpr):
    """Round float32 magnitude bits to magnitude codes, as if the exponent had no upper end."""
    if E.prefix:
        code = round_fixed(magnitude, E.shift, sign, draw, R)
    elif E.bottom == "normal":
        rebased = magnitude - ((127 - E.bias) << 23)
        if E.bias == 127:  # float32 has no normal at 2**-127: its subnormals count half as fast
            rebased = rebased - tl.maximum((1 << 23) - magnitude, 0)
        code = round_fixed(tl.maximum(rebased, 0), E.shift, sign, draw, R)
    else:
        base, steps = fixed_point(float_of(magnitude), E, R)
        code = round_fixed((base << E.fraction) + steps, E.fraction, sign, draw, R)
        if (E.bottom == "zero") & (E.mantissa > 0):
            jump = round_fixed(steps, E.fraction + E.mantissa, sign, draw, R) << E.mantissa
            code = tl.where((base == 0) & (steps < (1 << (E.fraction + E.mantissa))), jump, code)
    return code


@triton.jit
def fixed_point(magnitude, E: tl.constexpr, R: tl.constexpr):
    """Return (base, steps) with ``code = base + steps / 2**fraction``; see `Minifloat._fixed_point`."""
    magnitude = tl.minimum(magnitude, E.ceiling)
    field = tl.maximum(bits_of(magnitude) >> 23, E.low_field)
    exponent = E.steps_exponent - field
    if E.far:
        first = exponent >> 1
        magnitude = magnitude * float_of((first + 127) << 23)
        exponent = exponent - first
    steps = to_fixed(magnitude * float_of((exponent + 127) << 23), R)
    return (field - E.low_field) << E.mantissa, steps


@triton.jit
def to_fixed(x, R: tl.constexpr):
    """Return floor(x) as int32, with the last bit set where anything was cut off if R is sticky."""
    floor = x.to(tl.int32)
    if R.sticky:
        floor = floor | (floor.to(tl.float32) < x).to(tl.int32)
    return floor


@triton.jit
def encode_integer(y, draw, E: tl.constexpr, R: tl.constexpr, NAN: tl.constexpr):
    """Return top-aligned two's complement codes, as `Integer.encode`; NaN becomes 0 if NAN."""
    if NAN:
        y = tl.where(y == y, y, 0.0)
    if E.steps != 1.0:
        y = y * E.steps
    y = tl.minimum(tl.maximum(y, E.lowest), E.highest)
    if R.mode == "nearest-even":
        code = bits_of(y + 12582912.0)  # the adder rounds: beside 1.5 * 2**23 its last bit is 1
        code = code << (32 - E.bits)
    elif R.mode == "stochastic" and R.draw_bits == E.fraction:
        # Of magnitudes, floor(|n| + draw): for negative n that is the same sum with the draw's complement.
        n = (y * E.fraction_steps).to(tl.int32)
        code = (n + (draw ^ ((bits_of(y) >> 31) & 0xFFFF))) << (32 - E.bits - E.fraction)
    else:
        sign = bits_of(y) >> 31
        rounded = round_fixed(to_fixed(tl.abs(y) * E.fraction_steps, R), E.fraction, sign, draw, R)
        code = ((rounded ^ sign) - sign) << (32 - E.bits)
    return code


@triton.jit
def nearest_scale(x, F: tl.constexpr, R: tl.constexpr):
    """Return (plain code, value) of ``x``, 0 to the format's maximum, rounded to nearest even as R says too."""
    if F.anchored:
        value = nearest_by_adder(x, F)
        code = bits_of(value * F.rebase) >> F.shift
    else:
        code = encode_float(x, bits_of(x), F, R)
        value = decode_float(code, F)
    return code, value


@triton.jit
def decode_float(code, E: tl.constexpr):
    """Return the float32 values of plain magnitude codes of finite, non-negative values (scales)."""
    bits = code << E.shift
    if not E.prefix:
        bits = bits + ((127 - E.bias) << 23)
    value = float_of(bits)
    if E.bottom == "normal":
        if E.bias == 127:
            value = tl.where(code == 0, E.sub_step, value)
    elif not E.prefix:
        low = code.to(tl.float32) * E.sub_step
        if E.bottom == "zero":
            low = low * 0.0
        value = tl.where(code < E.subnormal_codes, low, value)
    return value
