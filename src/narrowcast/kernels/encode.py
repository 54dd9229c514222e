"""Device code: a float32 becomes a code, as `Minifloat.encode` and `Integer.encode` say.

Codes come out *top-aligned*: in the leading bits of an int32, whatever stands below. So a sign bit stays where it is,
and a funnel shift puts a code into its word.
"""

import triton
import triton.language as tl

from narrowcast.kernels.rounding import bits_of, float_of, leaves, round_fixed
from narrowcast.kernels.table import encode_by_table

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INF = tl.constexpr(0x7F800000)
_TOP = tl.constexpr(-(1 << 31))


@triton.jit
def multiply_toward_zero(a, power):
    """Return ``a * power`` rounded toward zero, ``power`` a power of two: only subnormal results lose anything."""
    if _IN_PTX:
        product = tl.inline_asm_elementwise("mul.rz.f32 $0, $1, $2;", "=f,f,f", [a, power], tl.float32, True, 1)
    else:
        exact = a.to(tl.float64) * power.to(tl.float64)
        near = exact.to(tl.float32)
        product = float_of(bits_of(near) - (tl.abs(near.to(tl.float64)) > tl.abs(exact)).to(tl.int32))
    return product


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
def encode(y, grid, draw, E: tl.constexpr, R: tl.constexpr, W: tl.constexpr, NAN: tl.constexpr):
    """Return the codes of float32 ``y``; NaN inputs get their own code if NAN, else anything.

    Top-aligned; but with W.halves as bits of the rebased float32, for `pack.packed_halves` to move two at once.
    ``grid``: where the format's grid lies (`grid_of`), or its tables.
    """
    if W.kind == "integer":
        code = encode_integer(y, draw, E, R, NAN)
    elif W.kind == "general":
        code = encode_float(y, draw, E, R) << (32 - E.bits)
    elif W.kind == "table":
        code = encode_by_table(y, grid, draw, E, R)
    else:
        code = rebased_bits(y, grid, draw, E, R, W)
        if not W.halves:
            code = signed(y, code, E)
    if NAN and E.family == "float":
        nan = tl.where(bits_of(y) < 0, E.negative_nan, E.positive_nan)
        code = tl.where((bits_of(y) & _MAGNITUDE) > _INF, nan, code)
    return code


@triton.jit
def grid_of(N: tl.constexpr, E: tl.constexpr):
    """Return (largest value, anchor of the smallest normal value as int32 bits, rebasing factor), [N] each.

    Rebasing takes the format's values to the float32 whose exponent field is theirs.
    """
    return tl.full([N], E.max, tl.float32), tl.full([N], E.anchor_least, tl.int32), tl.full([N], E.rebase, tl.float32)


@triton.jit
def rebased_bits(y, grid, draw, E: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """Round ``y``; return bits of the rebased float32, in whose leading bits the code of the magnitude stands."""
    limit, least, factor = grid
    a = y
    if not W.bounded and not (W.halves and W.kind == "dither"):
        a = tl.minimum(tl.abs(y), limit)
    elif W.kind == "adder":
        a = tl.abs(y)
    if W.kind == "adder":
        # The float32 adder rounds: beside a large enough power of two, the anchor, its last bit is one step of the
        # format. In integers alone, ties and subnormals take 10 instructions.
        anchor = float_of(tl.maximum((bits_of(a) & _INF) + E.anchor_step, least))
        bits = bits_of(((a + anchor) - anchor) * factor)
    elif W.kind == "dither":
        bits = shifted_to(bits_of(multiply_toward_zero(a, factor)), draw & R.draw_mask, E.draw_shift)
    else:
        moved = multiply_toward_zero(a, factor)
        bits = bits_of(moved)
        if R.sticky:
            bits = bits | (moved * E.unbase < a).to(tl.int32)
        bits = round_fixed(bits, E.shift, bits_of(y) >> 31, draw, R) << E.shift
    return bits


@triton.jit
def signed(y, bits, E: tl.constexpr):
    """Return sign and code: rebased ``bits`` moved up to the sign of ``y``."""
    code = chosen_bits(bits_of(y), bits << (8 - E.exponent), 0x80000000)
    if E.one_zero:
        code = tl.where((bits << (8 - E.exponent) & _MAGNITUDE) >> (32 - E.bits) == 0, 0, code)
    return code


@triton.jit
def chosen_bits(a, b, MASK: tl.constexpr):
    """Return the bits of ``a`` where MASK has ones, of ``b`` elsewhere."""
    if _IN_PTX:  # one instruction, where the compiler takes two
        found = tl.inline_asm_elementwise(f"lop3.b32 $0, $1, $2, {MASK}, 0xe4;", "=r,r,r", [a, b], tl.int32, True, 1)
    else:
        mask: tl.constexpr = (MASK & 0xFFFFFFFF) - ((MASK & 0x80000000) << 1)
        found = (a & mask) | (b & ~mask)
    return found


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
        anchor = float_of(tl.maximum((bits_of(x) & _INF) + F.anchor_step, F.anchor_least))
        value = (x + anchor) - anchor
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
