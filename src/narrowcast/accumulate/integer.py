"""Integer accumulators: a width, and what happens when a sum does not fit it. Shared-exponent (DFP) down-conversion."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.accumulate.accumulator import Accumulator, Operand, codes_of, put_back
from narrowcast.accumulate.product import TIMES, Product
from narrowcast.errors import CheckFailed, InputError, nearest

EXACT = 1 << 53  # float64 holds every integer up to here


@dataclass(frozen=True)
class Fixed(Accumulator):
    """A two's complement register of ``width`` bits to which integer products are added, k ascending.

    What is modelled: integer multiply-accumulate instructions and FPGA accumulators. Operands are the codes of integer
    formats (counted in their steps); products and sums are exact until they leave the register:

    - ``wrap``: the sum is taken modulo 2**width; the order does not matter (x86 VNNI, ARM dot products, Tensor Cores
      without ``satfinite``);
    - ``saturate``: every running sum is clamped, so the order matters: k ascending (VNNI's saturating form,
      ``satfinite``);
    - ``raise``: CheckFailed names the first sum that leaves the register on the way.

    Evidence: the instructions' public definitions; two full 15-bit magnitudes fit int32, three do not (32767**2 * 2
    < 2**31), which is why "Mixed precision training of CNNs using integer operations" (Das et al., ICLR 2018) spills
    short chains to float32: ``int32-wrap/every2/fp32``.

    Attributes:
        width: 8 to 48 bits.
        overflow: ``wrap``, ``saturate`` or ``raise``.
    """

    width: int = 32
    overflow: str = "wrap"

    def __post_init__(self) -> None:
        if not 8 <= self.width <= 48:
            raise InputError(f"accumulator {self}: expected 8 to 48 bits, found {self.width}")
        if self.overflow not in _POLICIES:
            raise InputError(
                f"accumulator int{self.width}: unknown overflow {self.overflow!r}{nearest(self.overflow, _POLICIES)}"
            )

    @property
    def on_codes(self) -> bool:
        """Integers are added, scales multiplied in afterwards."""
        return True

    @property
    def high(self) -> int:
        """Largest integer of the register."""
        return (1 << (self.width - 1)) - 1

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`; float64, integers where the operands have no scale."""
        self.accept(product)
        a, b = codes_of(a), codes_of(b)
        x, y = self._integers(a.values), self._integers(b.values)
        return put_back(_POLICIES[self.overflow](self, x, y), a, b)

    def leaves(self, a: Operand, b: Operand) -> Tensor:
        """Return (bool ``[..., M, N]``) which running sums, k ascending, leave the register on the way."""
        x, y = (self._integers(codes_of(o).values) for o in (a, b))
        out = (x.abs() @ y.abs().mT) > self.high
        if out.any():
            total, out = torch.zeros_like(out, dtype=torch.float64), torch.zeros_like(out)
            for k in range(x.shape[-1]):
                total += x[..., :, None, k] * y[..., None, :, k]
                out |= (total > self.high) | (total < -self.high - 1)
        return out

    def _integers(self, values: Tensor) -> Tensor:
        values = values.double()
        if not torch.equal(values, values.round()):
            odd = values[values != values.round()][0].item()
            raise InputError(
                f"accumulator {self} adds integers; found {odd:g}: cast both operands to an integer format, e.g. "
                "int8/tensor/fp32, or use a float accumulator"
            )
        return values

    def _sums(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the exact sums as float64."""
        top = float(x.abs().amax()) * float(y.abs().amax()) * x.shape[-1] if x.numel() and y.numel() else 0.0
        if top >= EXACT:
            raise InputError(f"accumulator {self}: sums of {x.shape[-1]} products up to 2**53 are beyond the emulation")
        return x @ y.mT

    def _wrapped(self, x: Tensor, y: Tensor) -> Tensor:
        mask = (1 << self.width) - 1
        return ((self._sums(x, y).long() + self.high + 1) & mask).double() - (self.high + 1)

    def _saturated(self, x: Tensor, y: Tensor) -> Tensor:
        if not ((x.abs() @ y.abs().mT) > self.high).any():
            return self._sums(x, y)
        total = x.new_zeros((*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]))
        for k in range(x.shape[-1]):
            total = (total + x[..., :, None, k] * y[..., None, :, k]).clamp_(-self.high - 1, self.high)
        return total

    def _checked(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.leaves(x, y)
        if out.any():
            where = out.nonzero()[0].tolist()
            raise CheckFailed(
                f"accumulator {self}: {int(out.sum())} of {out.numel()} sums of {x.shape[-1]} products leave "
                f"{self.width} bits, the first at {where}; use fewer bits or a shorter chain, e.g. '{self}/every2/fp32'"
            )
        return self._sums(x, y)

    def __str__(self) -> str:
        return f"int{self.width}-{self.overflow}"


_POLICIES: dict[str, Callable[[Fixed, Tensor, Tensor], Tensor]] = {
    "wrap": Fixed._wrapped,
    "saturate": Fixed._saturated,
    "raise": Fixed._checked,
}


def narrow_shared(total: Tensor, bits: int = 16) -> tuple[Tensor, int]:
    """Return (integers, shift): sums brought back to ``bits`` under one shared exponent, ``total ~ integers << shift``.

    ``shift`` is the least that makes the largest magnitude fit ``bits - 1`` bits, from its leading zeros; half of the
    last kept bit is added before an arithmetic shift (Das et al., ICLR 2018). A largest value that rounds up to
    2**(bits - 1) stays at the largest integer.

    Args:
        total: integer-valued tensor (int64, or float64 as `Fixed` returns it).
        bits: of the result, 2 to 32.
    """
    whole = total.long()
    largest = int(whole.abs().amax()) if whole.numel() else 0
    shift = max(0, largest.bit_length() - (bits - 1))
    half = 1 << shift >> 1
    high = (1 << (bits - 1)) - 1
    return ((whole + half) >> shift).clamp_(-high, high), shift


def add_shared(x: tuple[Tensor, int], y: tuple[Tensor, int], bits: int = 16) -> tuple[Tensor, int]:
    """Return the sum of two shared-exponent tensors ``(integers, exponent)``, again of ``bits``.

    The one with the smaller exponent is shifted down to the larger (an arithmetic shift, which floors), the integers
    are added, and a carry out of ``bits`` costs one more shift.
    """
    (xi, xe), (yi, ye) = sorted((x, y), key=lambda pair: pair[1])
    total, shift = narrow_shared((xi.long() >> min(ye - xe, 62)) + yi.long(), bits)
    return total, ye + shift
