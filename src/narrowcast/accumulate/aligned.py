"""Tensor cores: a group of products, aligned to the largest exponent, cut off, added at once, cut off again."""

from dataclasses import dataclass
from math import frexp

import torch
from torch import Tensor

from narrowcast.accumulate.accumulator import Accumulator, Codes, Operand, codes_of, finite, patched, put_back
from narrowcast.accumulate.doubles import exponent, odd_sum, power_of_two, truncated
from narrowcast.accumulate.product import TIMES, Product
from narrowcast.errors import InputError

_NONE = -450  # exponent of a zero: whatever it meets, below any product of two float32 numbers that are not


@dataclass(frozen=True)
class Aligned(Accumulator):
    """A tensor core that adds ``group`` products (and its running sum) in one fixed-point addition.

    What is modelled, for each group of K in turn:

    1. products are exact; each has the exponent ``e(a) + e(b)`` of its operands (its significand lies in [1, 4); an
       operand below its format's normals keeps the lowest exponent), or, ``normalised``, its own;
    2. all products, and the running sum where it ``joins``, are shifted to the largest exponent among them, and
       everything below ``fraction`` bits behind its point is dropped, toward zero;
    3. they are added exactly, and the sum is cut to ``register`` mantissa bits, toward zero. A running sum that does
       not join is added to the group's sum before that cut.

    Evidence for Hopper's FP8 (`HOPPER_FP8`: 32, 13, 13): "Insights into DeepSeek-V3" (ISCA 2025, section 3.1): 32
    products, 13 fraction bits, a 1-8-13 register. Khattak & Mikaitis, "Accurate models of NVIDIA tensor cores"
    (arXiv 2512.07004), publish outputs measured on an H100 with their operands: this model gives all 5,000 dot
    products of 32 e4m3fn and all 5,000 of 32 e5m2 bit for bit; with normalised exponents 4,538 and 4,843, with 12
    or 14 fraction bits fewer. Those start from zero, so that the running sum joins is an assumption. For 16-bit
    operands (`HOPPER_FP16`: 16, 25, 23) their 15,000 H100 outputs (bfloat16, float16, and tf32 four at a time),
    which do add a running sum, agree bit for bit too. Not modelled: subnormal results of the register, and its
    overflow on the way (only the end becomes infinite).

    Attributes:
        group: products per addition.
        fraction: bits kept behind the largest exponent, at most 40.
        register: mantissa bits of the running sum, at most 23.
        normalised: whether a product is normalised before its exponent is compared.
        joins: whether the running sum takes part in the alignment.
    """

    group: int
    fraction: int
    register: int
    normalised: bool = False
    joins: bool = True

    def __post_init__(self) -> None:
        if not (self.group >= 1 and 1 <= self.fraction <= 40 and 1 <= self.register <= 23):
            raise InputError(
                f"accumulator {self._plain()}: expected a group of at least 1, 1 to 40 fraction bits and a register of "
                "1 to 23 bits"
            )

    @property
    def on_codes(self) -> bool:
        """The alignment sees codes, scales are multiplied in afterwards."""
        return True

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`."""
        self.accept(product)
        a, b = codes_of(a), codes_of(b)
        cost = b.values.shape[-2] * self.group
        total = torch.cat([self._rows(left, b) for left in a.rows(cost)], dim=-2).float()
        return put_back(patched(total, a.values, b.values), a, b)

    def _rows(self, a: Codes, b: Codes) -> Tensor:
        """Return the float64 sums of some rows of ``a``."""
        (xa, ea), (xb, eb) = (self._significands(x) for x in (a, b))
        total = (a.values[..., :, None, :0].sum(-1) + b.values[..., None, :, :0].sum(-1)).double()
        for group in range(xa.shape[-3] if a.values.shape[-1] else 0):
            at = (..., group, slice(None), slice(None))
            products = xa[at][..., :, None, :] * xb[at][..., None, :, :]
            exponents = ea[at][..., :, None, :] + eb[at][..., None, :, :]
            if self.normalised:
                exponents = exponent(products, 2 * _NONE)
            total = self._add(total, products, exponents.amax(-1).clamp_min_(2 * _NONE))
        return total

    def _add(self, total: Tensor, products: Tensor, highest: Tensor) -> Tensor:
        """Return the next running sum; ``products [..., M, N, group]``, ``highest [..., M, N]`` their exponent."""
        if self.joins:
            highest = torch.maximum(highest, exponent(total, _NONE))
        down, up = power_of_two(self.fraction - highest), power_of_two(highest - self.fraction)
        fixed = products.mul_(down[..., None]).trunc_().sum(-1)
        if self.joins:
            return truncated((fixed + (total * down).trunc_()) * up, self.register)
        return truncated(odd_sum(fixed * up, total), self.register)

    def _significands(self, x: Codes) -> tuple[Tensor, Tensor]:
        """Return (values, exponents) in groups ``[..., T, R, group]``, float64 and int64."""
        values = Codes(finite(x.values).double()).chunks(self.group).values
        lowest = frexp(x.smallest_normal)[1] - 1 if x.smallest_normal else _NONE
        return values, exponent(values, lowest).masked_fill_(values == 0, _NONE)

    def _plain(self) -> str:
        options = f"{'+normalised' if self.normalised else ''}{'' if self.joins else '+late'}"
        return f"aligned-{self.group}-{self.fraction}-{self.register}{options}"

    def __str__(self) -> str:
        return next((name for name, preset in PRESETS.items() if preset == self), self._plain())


HOPPER_FP8 = Aligned(group=32, fraction=13, register=13)
HOPPER_FP16 = Aligned(group=16, fraction=25, register=23)
PRESETS = {"hopper-fp8": HOPPER_FP8, "hopper-fp16": HOPPER_FP16}
