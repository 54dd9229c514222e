"""The exact sum, rounded once: a quire (Kulisch accumulator) wide enough for any products."""

from dataclasses import dataclass
from math import ceil, log2

import torch
from torch import Tensor

from narrowcast.accumulate.accumulator import Accumulator, Operand, finite, patched, tensor_of
from narrowcast.accumulate.doubles import exponent, power_of_two
from narrowcast.accumulate.product import TIMES, Product

_LOWEST = -149  # exponent of float32's smallest number
_MANTISSA = 53


@dataclass(frozen=True)
class Exact(Accumulator):
    """Every product exact, every sum exact; what comes out is rounded once, to the output's format.

    What is modelled: a quire (posit standard 2022), a Kulisch accumulator. Always exact for finite float32 operands:

    - where every partial sum fits 53 bits over the operands' last bits (codes of 8-bit formats, integers, 16-bit
      floats of moderate range), one float64 matmul, which then rounds nowhere, in any order;
    - else the operands are cut into digits of ``p`` bits so that the matmuls of digits are exact in float64 (Ozaki et
      al., "Error-free transformations of matrix multiplication", 2012); carries run through the digits as in the
      hardware's register, and the leading 35 bits or more are kept with a sticky bit.

    The result is float64: the sum itself where it has at most 34 bits, else a neighbour that every rounding to 32 bits
    or fewer treats as the sum (rounded to odd).
    """

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`."""
        self.accept(product)
        a, b = (tensor_of(x).detach().float() for x in (a, b))
        total = _exact(finite(a).double(), finite(b).double())
        return patched(total, a, b)

    def __str__(self) -> str:
        return "exact"


EXACT_SUM = Exact()


def _exact(a: Tensor, b: Tensor) -> Tensor:
    k = max(1, a.shape[-1])
    (low_a, width_a), (low_b, width_b) = _span(a), _span(b)
    if width_a + width_b + ceil(log2(k)) <= _MANTISSA:
        return a @ b.mT
    p = 20
    while 2 * p + ceil(log2(k * -(-max(width_a, width_b) // p))) > _MANTISSA:
        p -= 1
    levels = _digit_products(_digits(a, low_a, width_a, p), _digits(b, low_b, width_b, p))
    negative = _carried(levels, p)[-1] < 0
    sign = torch.where(negative, -1, 1)
    digits = _carried([level * sign for level in levels], p)
    head, dropped = _leading(digits, p)
    return head.double() * sign * power_of_two(dropped + (low_a + low_b))


def _span(x: Tensor) -> tuple[int, int]:
    """Return (exponent of the last bit of any element, width from there to the first bit of any)."""
    x = x[x != 0]
    if not x.numel():
        return 0, 1
    top = int(exponent(x, 2 * _LOWEST).amax())
    significand = (x.view(torch.int64) & ((1 << 52) - 1)) | (1 << 52)
    zeros = exponent((significand & -significand).double(), 0)  # trailing zeros of the 53-bit significand
    low = int((exponent(x, 2 * _LOWEST) - 52 + zeros).amin())
    return low, top - low + 1


def _digits(x: Tensor, low: int, width: int, p: int) -> list[Tensor]:
    """Return signed digits of ``p`` bits, least first: ``x = sum digit[i] * 2**(low + i * p)``, exact in float64."""
    rest, digits = x.abs() * 2.0**-low, []
    for _ in range(-(-width // p)):
        above = (rest * 2.0**-p).floor()
        digits.append((rest - above * 2.0**p).copysign(x))
        rest = above
    return digits


def _digit_products(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Return int64 sums per level: ``sum over i + j = level of a[i] @ b[j].T``."""
    levels = [sum(a[i] @ b[n - i].mT for i in range(len(a)) if 0 <= n - i < len(b)) for n in range(len(a) + len(b) - 1)]
    return [torch.as_tensor(level).long() for level in levels]


def _carried(levels: list[Tensor], p: int) -> list[Tensor]:
    """Let carries run up: digits in [0, 2**p), and a last one that holds the rest, sign included."""
    carry, digits = torch.zeros_like(levels[0]), []
    for level in levels:
        total = level + carry
        carry = total >> p
        digits.append(total & ((1 << p) - 1))
    return [*digits, carry]


def _leading(digits: list[Tensor], p: int) -> tuple[Tensor, Tensor]:
    """Return (integer of at most 53 bits, exponent): the leading digits of a non-negative number.

    Digits are taken while the integer has room for one more; what is left sets its last bit (sticky).
    """
    head, sticky = torch.zeros_like(digits[0]), torch.zeros_like(digits[0])
    taken = torch.zeros_like(digits[0])
    for digit in reversed(digits):
        room = head < 1 << (_MANTISSA - p)
        head = torch.where(room, (head << p) + digit, head)
        taken += room
        sticky |= torch.where(room, 0, digit)
    return head | (sticky != 0), (len(digits) - taken) * p
