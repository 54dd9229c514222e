"""The minifloat family: sign, ExMy, bias, and an explicit policy for everything at the edges.

    value = (-1)**sign * 2**(e - bias) * (1 + m / 2**M)      e > 0
    value = (-1)**sign * 2**(1 - bias) * (m / 2**M)          e == 0 (subnormal)

The magnitude code ``e << M | m`` counts the representable magnitudes in order, and so do the bits of a float32. To
encode is therefore to shift a float32's magnitude bits right by ``23 - M``, rounding on the way, after moving the
exponent bias; only values below the smallest normal need a multiplication to get the same fixed point.
Sources: OCP OFP8 and MX v1.0 specifications; formats-reference, section 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.decoding import converted, with_ends
from narrowcast.formats.format import (
    FLOAT32_BIAS,
    FLOAT32_MAGNITUDE,
    FLOAT32_MANTISSA,
    FLOAT32_SIGN,
    Format,
    Layout,
    add_and_subtract,
    draws_of,
    float32_once,
    to_fixed_point,
)
from narrowcast.formats.pieces import by_pieces
from narrowcast.formats.rounding import NEAREST_EVEN, RealRound, Rounding
from narrowcast.formats.specials import Bottom, Specials

FLOAT32_INF = 0x7F800000
FLOAT32_NAN = 0x7FC00000
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
FLOAT32_SMALLEST = 2.0**-149


@dataclass(frozen=True)
class Minifloat(Format):
    """A binary float with ``exponent`` and ``mantissa`` field widths, as a value.

    Attributes:
        name: e.g. ``"e4m3fn"``.
        exponent: width of the exponent field, 1 to 8.
        mantissa: width of the mantissa field, 0 to 23.
        bias: exponent bias, at most 128 (P3109's with 8 exponent bits); with 127 codes are float32's leading bits.
        specials: which codes are infinity and NaN.
        bottom: what exponent field 0 means.
        signed: whether a sign bit precedes the exponent. Unsigned formats turn negative values into NaN, or into zero
            where they have none.
        saturate: whether values beyond the maximum, infinities too, become the maximum (OFP8's saturating
            conversion); otherwise they become infinity, or NaN where there is none, or the maximum where there is
            neither.
    """

    name: str
    exponent: int
    mantissa: int
    bias: int
    specials: Specials = Specials.IEEE
    bottom: Bottom = Bottom.SUBNORMAL
    signed: bool = True
    saturate: bool = True

    def __post_init__(self) -> None:
        if not (1 <= self.exponent <= 8 and 0 <= self.mantissa <= FLOAT32_MANTISSA):
            found = f"found {self.exponent} and {self.mantissa}"
            raise InputError(f"format {self.name}: exponent must be 1 to 8 bits and mantissa 0 to 23, {found}")
        if self.mantissa > 20 and self.bias != FLOAT32_BIAS:
            raise InputError(f"format {self.name}: more than 20 mantissa bits need float32's bias 127")
        if self.bias > FLOAT32_BIAS + (self.bottom is Bottom.SUBNORMAL) or self.smallest < FLOAT32_SMALLEST:
            raise InputError(f"format {self.name}: bias {self.bias} is out of range; float32 holds no smaller values")
        if self.max_code < 1 or (self.max_code >> self.mantissa) - self.bias > FLOAT32_BIAS:
            raise InputError(f"format {self.name}: its range does not fit float32's")
        if self.specials is Specials.FNUZ and not self.signed:
            raise InputError(f"format {self.name}: fnuz needs a sign bit, its NaN is the code of -0")
        if self.bottom is Bottom.NORMAL and (self.signed or self.nan_code is None):
            raise InputError(f"format {self.name}: without a zero it must be unsigned and have a NaN, as e8m0 does")
        if self._is_float32_prefix and self.specials is not Specials.IEEE:
            raise InputError(f"format {self.name}: with float32's bias 127 the specials must be IEEE's")

    # --- facts, all derived ---

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return self.exponent + self.mantissa + self.signed

    @property
    def precision(self) -> int:
        """Mantissa bits behind the leading one."""
        return self.mantissa

    @property
    def layout(self) -> Layout:
        """Sign, exponent and mantissa."""
        return Layout("minifloat", int(self.signed), self.exponent, self.mantissa, self.specials.words)

    @property
    def max_code(self) -> int:
        """Magnitude code of the largest finite value."""
        top = 1 << (self.exponent + self.mantissa)
        match self.specials:
            case Specials.IEEE:
                return top - (1 << self.mantissa) - 1
            case Specials.FN:
                return top - 2
            case Specials.P3109:
                return top - 3 + self.signed
            case _:
                return top - 1

    @property
    def nan_code(self) -> int | None:
        """Full code of the NaN that `encode` writes for a positive NaN, or None."""
        match self.specials:
            case Specials.IEEE if self.mantissa:
                return ((1 << (self.exponent + 1)) - 1) << (self.mantissa - 1)  # quiet: top mantissa bit set
            case Specials.FN:
                return (1 << (self.exponent + self.mantissa)) - 1
            case Specials.P3109 if not self.signed:
                return (1 << (self.exponent + self.mantissa)) - 1
            case Specials.FNUZ | Specials.P3109:
                return 1 << (self.exponent + self.mantissa)
            case _:
                return None

    @property
    def inf_code(self) -> int | None:
        """Magnitude code of infinity, or None."""
        return self.max_code + 1 if self.specials in (Specials.IEEE, Specials.P3109) else None

    @property
    def max(self) -> float:
        """Largest finite value."""
        field, rest = divmod(self.max_code, 1 << self.mantissa)
        if field == 0 and self.bottom is not Bottom.NORMAL:
            return rest * 2.0 ** (1 - self.bias - self.mantissa)
        return (1 + rest / (1 << self.mantissa)) * 2.0 ** (field - self.bias)

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value with a full mantissa."""
        return 2.0 ** (-self.bias if self.bottom is Bottom.NORMAL else 1 - self.bias)

    @property
    def smallest(self) -> float:
        """Smallest positive value."""
        return 2.0 ** (1 - self.bias - self.mantissa) if self._subnormals else self.smallest_normal

    @property
    def _one_zero(self) -> bool:
        """Whether there is no -0: its code is the one NaN, which then has no sign either."""
        return not self.signed or self.specials in (Specials.FNUZ, Specials.P3109)

    @property
    def _subnormals(self) -> bool:
        return self.bottom is Bottom.SUBNORMAL and self.mantissa > 0

    @property
    def _shift(self) -> int:
        return FLOAT32_MANTISSA - self.mantissa

    @property
    def _is_float32_prefix(self) -> bool:
        """Whether codes are the leading bits of float32's own (bfloat16): then only the shift remains."""
        return self.bias == FLOAT32_BIAS and self.bottom is Bottom.SUBNORMAL

    @property
    def _adder_rounds(self) -> bool:
        """Whether `add_and_subtract` can round to this format: gradual underflow, and an anchor within float32."""
        top = self.max_code >> self.mantissa
        anchored = self.mantissa <= 20 and top + 1 - self.bias + self._shift < FLOAT32_BIAS
        return self.bottom is Bottom.SUBNORMAL and anchored and (self.signed or self.nan_code is not None)

    @property
    def _steps_round(self) -> bool:
        """Whether `_round_by_steps` applies: every overflow at the maximum, few enough steps, each a normal float32.

        Without mantissa bits an even code is no even count of steps, so such formats are left out.
        """
        normal = self.bias + self.mantissa <= FLOAT32_BIAS
        return self._adder_rounds and self.saturate and 1 <= self.mantissa <= 6 and normal

    # --- encode ---

    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``; see `Format.encode`."""
        random = draws_of(x, rounding, random)
        x = float32_once(x, self.mantissa, rounding, random)
        return by_pieces(lambda piece, draws: self._encode(piece, rounding, draws), x, random)

    def _encode(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        bits = x.view(torch.int32)
        magnitude, sign = bits & FLOAT32_MAGNITUDE, bits >> 31
        is_nan = magnitude > FLOAT32_INF
        magnitude = magnitude.masked_fill_(is_nan, 0)
        code = self._magnitude_code(magnitude, sign, rounding, random)
        code = self._resolve_overflow(code, magnitude, sign, rounding)
        code = self._apply_sign(code, magnitude, sign)
        if self.nan_code is None:
            return code.masked_fill(is_nan, 0).to(self.code_dtype)
        one = torch.full_like(code, self.nan_code)
        nan = one if self._one_zero else self.nan_code | (sign & (1 << (self.bits - 1)))
        return torch.where(is_nan, nan, code).to(self.code_dtype)

    def _magnitude_code(self, magnitude: Tensor, sign: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Round float32 magnitude bits to magnitude codes, as if the exponent had no upper end."""
        if self._is_float32_prefix:
            return rounding(magnitude, self._shift, sign, random)
        if self.bottom is Bottom.NORMAL:
            rebased = magnitude - ((FLOAT32_BIAS - self.bias) << FLOAT32_MANTISSA)
            if self.bias == FLOAT32_BIAS:  # float32 has no normal at 2**-127: its subnormals count half as fast
                rebased = rebased - ((1 << FLOAT32_MANTISSA) - magnitude).clamp_min(0)
            return rounding(rebased.clamp_min(0), self._shift, sign, random)
        base, steps, _ = self._fixed_point(magnitude.view(torch.float32), rounding)
        code = rounding((base << self._fraction) + steps, self._fraction, sign, random)
        if self.bottom is Bottom.ZERO and self.mantissa:
            jump = rounding(steps, self._fraction + self.mantissa, sign, random) << self.mantissa
            code = torch.where((base == 0) & (steps < 1 << (self._fraction + self.mantissa)), jump, code)
        return code

    @property
    def _fraction(self) -> int:
        """Fractional bits of a code while it is rounded: 16 (one random draw), less where int32 is too short."""
        return min(16, 30 - self.exponent - self.mantissa)

    def _fixed_point(self, magnitude: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor, Tensor]:
        """Return (base, steps, binade) with ``code = base + steps / 2**fraction`` for each float32 magnitude.

        ``binade`` is the float32 exponent field of the binade that sets the step; below the smallest normal it stays
        at the lowest one, which is all that subnormals are. Magnitudes are first clamped to the binade above the range,
        so that codes stay small.
        """
        magnitude = magnitude.clamp_max(min(2.0 ** (self.top_exponent + 1), FLOAT32_MAX))
        binade = (magnitude.view(torch.int32) >> FLOAT32_MANTISSA).clamp_min_(FLOAT32_BIAS + 1 - self.bias)
        steps = to_fixed_point(
            self._times_power(magnitude, self.mantissa + self._fraction + FLOAT32_BIAS - binade), rounding
        )
        base = (binade - (FLOAT32_BIAS + 1 - self.bias)) << self.mantissa
        return base, steps, binade

    def _times_power(self, x: Tensor, exponent: Tensor) -> Tensor:
        """Return ``x * 2**exponent`` in place, exactly; where 2**127 is not enough, in two steps."""
        if self.mantissa + self._fraction + self.bias > FLOAT32_BIAS + 1:
            first = exponent >> 1
            x = x.mul_(((first + FLOAT32_BIAS) << FLOAT32_MANTISSA).view(torch.float32))
            exponent = exponent - first
        return x.mul_(((exponent + FLOAT32_BIAS) << FLOAT32_MANTISSA).view(torch.float32))

    def _resolve_overflow(self, code: Tensor, magnitude: Tensor, sign: Tensor, rounding: Rounding) -> Tensor:
        if self.saturate or self.specials is Specials.NONE:
            return code.clamp_max(self.max_code)
        beyond = self.inf_code if self.inf_code is not None else self.nan_code
        leaves = (rounding.leaves(sign) & (code > self.max_code)) | (magnitude == FLOAT32_INF)
        return torch.where(leaves, beyond, code.clamp_max(self.max_code))  # type: ignore[arg-type]

    def _apply_sign(self, code: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
        if self.signed:
            signed = code | (sign & (1 << (self.bits - 1)))
            return torch.where(code == 0, code, signed) if self._one_zero else signed
        invalid = (sign != 0) & (magnitude > 0)
        if self.bottom is Bottom.NORMAL:
            invalid = invalid | (magnitude == 0)
        return torch.where(invalid, self.nan_code or 0, code)

    # --- decode and round ---

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 values of ``codes``."""
        values = None
        if self.signed and self.bottom is Bottom.SUBNORMAL:
            values = converted(codes, self.exponent, self.mantissa, self.bias, self.specials)
        return self._decode_fields(codes.int()) if values is None else values

    def _decode_fields(self, codes: Tensor) -> Tensor:
        magnitude = codes & ((1 << (self.exponent + self.mantissa)) - 1)
        bits = magnitude << self._shift
        if not self._is_float32_prefix:
            bits = bits + ((FLOAT32_BIAS - self.bias) << FLOAT32_MANTISSA)
        value = bits.view(torch.float32)
        if self.bottom is Bottom.NORMAL:
            value = torch.where(magnitude == 0, self.smallest_normal, value) if self.bias == FLOAT32_BIAS else value
        elif not self._is_float32_prefix:
            low = magnitude.float() * 2.0 ** (1 - self.bias - self.mantissa)
            low = torch.zeros_like(value) if self.bottom is Bottom.ZERO else low
            lowest = 2 if self.bias > FLOAT32_BIAS else 1  # binades that float32 has no normals for
            value = torch.where(magnitude < (lowest << self.mantissa), low, value)
        value = with_ends(value, codes, magnitude, self.specials, self.max_code, self.nan_code)
        return torch.where((codes >> (self.bits - 1)) & 1 == 1, -value, value) if self.signed else value

    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the float32 values that ``x`` becomes; NaN stays NaN even where the format has none."""
        random = draws_of(x, rounding, random)
        x = float32_once(x, self.mantissa, rounding, random)
        if rounding is NEAREST_EVEN and (dtype := self.torch_dtype) is not None and not torch.compiler.is_compiling():
            return x.to(dtype).to(torch.float32, copy=True)
        return by_pieces(lambda piece, draws: self._round(piece, rounding, draws), x, random)

    def _round(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Take the quickest way to the values that this format and mode allow; all give the same bits."""
        if rounding is NEAREST_EVEN and self._adder_rounds:
            return self._round_by_adder(x)
        if rounding.real is not None and self._steps_round:
            return self._round_by_steps(x, rounding.real, random)
        if self._is_float32_prefix and self.exponent == 8 and self.signed and not self.saturate:
            return self._round_prefix(x, rounding, random)
        if self.bottom is Bottom.NORMAL and self._is_scale:
            return self._round_powers(x, rounding, random)
        return torch.where(x.isnan(), x, self.decode(self._encode(x, rounding, random)))

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch dtype with these very values, where torch's own cast is IEEE's in every version.

        That holds for the 16-bit types; its 8-bit casts changed between 2.11 and 2.13 and are never used. Compiled
        code must not use it either: the compiler drops a cast that is undone at once, and with it the rounding.
        """
        if (self.specials, self.bottom, self.saturate, self.signed) != (Specials.IEEE, Bottom.SUBNORMAL, False, True):
            return None
        fields = (self.exponent, self.mantissa, self.bias)
        return {(8, 23, 127): torch.float32, (8, 7, 127): torch.bfloat16, (5, 10, 15): torch.float16}.get(fields)

    def _clamped(self, x: Tensor, limit: float) -> Tensor:
        return x.clamp(-limit if self.signed else 0.0, limit)

    def _binades(self, y: Tensor) -> Tensor:
        """Return the float32 exponent field, in place, of the binade that sets each value's step."""
        return (y.view(torch.int32) & FLOAT32_INF).clamp_(min=(FLOAT32_BIAS + 1 - self.bias) << FLOAT32_MANTISSA)

    def _round_by_steps(self, x: Tensor, real: RealRound, random: Tensor | None) -> Tensor:
        """Any mode, saturating, without codes: round the count of steps of each value's binade."""
        y = self._clamped(x, self.max)
        step = self._binades(y).sub_(self.mantissa << FLOAT32_MANTISSA)
        per_step = (2 * FLOAT32_BIAS << FLOAT32_MANTISSA) - step  # powers of two, both: the products are exact
        value = real(y.mul_(per_step.view(torch.float32)), random).mul_(step.view(torch.float32))
        if not self._one_zero:
            return value
        value.add_(0.0)  # -0 becomes +0
        return value if self.signed else self._without_negatives(value, x)

    def _without_negatives(self, y: Tensor, x: Tensor) -> Tensor:
        """Return ``y``, NaN where ``x`` is negative or NaN, for formats that have one."""
        if self.nan_code is None:
            return y
        below = x.clamp_max(0.0).view(torch.int32) & FLOAT32_MAGNITUDE
        nan = below.neg_().bitwise_right_shift_(31).bitwise_and_(FLOAT32_NAN)
        return nan.bitwise_or_(y.view(torch.int32)).view(torch.float32)

    def _round_prefix(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Any mode, not saturating, for formats whose codes are float32's leading bits (bfloat16)."""
        bits = x.view(torch.int32)
        sign = bits >> 31
        code = rounding(bits & FLOAT32_MAGNITUDE, self._shift, sign, random)
        if rounding.overflow != "leaves":  # where it leaves, the carry itself makes an infinity
            code = torch.minimum(code, rounding.leaves(sign).int().add_(self.max_code))
        value = (code << self._shift).bitwise_or_(bits & FLOAT32_SIGN).view(torch.float32)
        return torch.where(x.isfinite(), value, x)

    @property
    def _is_scale(self) -> bool:
        """Whether the values are bare powers of two over float32's whole range (e8m0)."""
        return self.mantissa == 0 and self.bias == FLOAT32_BIAS and self.saturate and not self.signed

    def _round_powers(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Any mode, saturating, for powers of two: shift codes back into float32's exponent field."""
        bits = x.view(torch.int32)
        code = self._magnitude_code(bits & FLOAT32_MAGNITUDE, bits >> 31, rounding, random)
        value = (code.clamp_max_(self.max_code) << FLOAT32_MANTISSA).view(torch.float32).clamp_min_(self.smallest)
        return value.add_(x.rsqrt().mul_(0.0))  # 0, or NaN where x is NaN, zero or negative

    def _round_by_adder(self, x: Tensor) -> Tensor:
        """Nearest-even values without codes: clamp, anchor each element's binade, add and subtract."""
        y = self._clamped(x, self.max if self.saturate else 2.0 ** (self.top_exponent + 1))
        anchor = self._binades(y)
        if self.mantissa == 0:  # ties, one and a half steps, go to the even code: a sum that starts odd sends them down
            anchor += ((anchor >> FLOAT32_MANTISSA) + self.bias) & 1
        anchor += (self._shift << FLOAT32_MANTISSA) + (1 << (FLOAT32_MANTISSA - 1))
        y = add_and_subtract(y, anchor.view(torch.float32))
        if not self.saturate:
            beyond = float("inf") if self.inf_code is not None else float("nan")
            beyond = self.max if self.specials is Specials.NONE else beyond
            y = y.masked_fill_(y > self.max, beyond).masked_fill_(y < -self.max, -beyond)
        if not self.signed:
            return self._without_negatives(y, x)
        return y if self._one_zero else y.copysign_(x)
