"""What an accumulator is: how the products of a gemm are summed along K.

A gemm multiplies ``a [..., M, K]`` by ``b [..., N, K]`` and sums along K. Which width the running sum has, in which
order the products are added, where it is moved to a wider register and what happens on overflow are facts of a
device; each is a field of a frozen value here. Every member says what it models and on what evidence.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.accumulate.product import TIMES, Product
from narrowcast.errors import InputError
from narrowcast.formats.views import split_axis

WORK = 1 << 21  # elements of an emulation's largest intermediate: 16 MiB as float64


@dataclass(frozen=True)
class Codes:
    """One operand as a multiplier sees it: the values of its codes, and the scales that multiply back afterwards.

    Attributes:
        values: ``[..., R, K]`` float32, what the codes decode to.
        scale: ``[..., R, K]`` float32, each element's scale, or None for 1 everywhere.
        smallest_normal: of the element format: the exponent of a multiplier's input goes no lower (0: it has no end).
    """

    values: Tensor
    scale: Tensor | None = None
    smallest_normal: float = 0.0

    def scaled(self) -> Tensor:
        """Return the values with their scales put back."""
        return self.values if self.scale is None else self.values * self.scale

    @property
    def mT(self) -> "Codes":
        """The transpose."""
        return Codes(self.values.mT, None if self.scale is None else self.scale.mT, self.smallest_normal)

    def columns(self, count: int) -> "Codes":
        """Return the first ``count`` columns; where there are fewer, zeros are appended, under the last scales."""
        short = count - self.values.shape[-1]
        if short <= 0:
            scale = None if self.scale is None else self.scale[..., :count]
            return Codes(self.values[..., :count], scale, self.smallest_normal)
        scale = None if self.scale is None else _longer(self.scale, short)
        return Codes(F.pad(self.values, (0, short)), scale, self.smallest_normal)

    def chunks(self, size: int) -> "Codes":
        """Return K cut into runs of ``size``, the last filled with zeros: ``[..., R, K] -> [..., T, R, size]``."""
        scale = None if self.scale is None else _cut(self.scale, size, "replicate")
        return Codes(_cut(self.values, size, "constant"), scale, self.smallest_normal)

    def rows(self, cost: int) -> "list[Codes]":
        """Cut into blocks of rows whose work arrays, ``cost`` elements a row, stay near `WORK` elements."""
        size = max(1, WORK // max(1, cost * self.values.shape[:-2].numel()))
        values = self.values.split(size, dim=-2)
        scales = [None] * len(values) if self.scale is None else self.scale.split(size, dim=-2)
        return [Codes(v, s, self.smallest_normal) for v, s in zip(values, scales, strict=True)]

    def row_scale(self) -> Tensor:
        """Return ``[..., R]``: the one scale of each row; InputError where it changes along K."""
        assert self.scale is not None
        first = self.scale[..., :1]
        if not torch.equal(self.scale, first.expand_as(self.scale)) and not self.scale.isnan().any():
            raise InputError(
                "the scale of an operand changes within one sum of the accumulator: let it promote as often as the "
                "scale changes, e.g. 'hopper-fp8/every128/fp32' for tiles of 128 along K"
            )
        return first.squeeze(-1)


Operand = Tensor | Codes


def codes_of(operand: Operand) -> Codes:
    """Return ``operand`` as `Codes`; a plain tensor has no scales."""
    return operand if isinstance(operand, Codes) else Codes(operand.detach())


def tensor_of(operand: Operand) -> Tensor:
    """Return ``operand`` as a tensor, scales put back."""
    return operand.scaled() if isinstance(operand, Codes) else operand


def _cut(x: Tensor, size: int, mode: str) -> Tensor:
    short = -x.shape[-1] % size
    if short and mode == "constant":
        x = F.pad(x, (0, short))
    elif short:
        x = _longer(x, short)
    return split_axis(x, -1, size).movedim(-2, -3)


def _longer(x: Tensor, by: int) -> Tensor:
    """Return ``x`` with its last column ``by`` times more."""
    return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], by)], dim=-1)


def put_back(total: Tensor, a: Codes, b: Codes) -> Tensor:
    """Multiply the sums ``[..., M, N]`` by their operands' scales: one float32 product of scales, one rounding."""
    if a.scale is None and b.scale is None:
        return total
    return (total.double() * pair_scale(a, b).double()).float()


def pair_scale(a: Codes, b: Codes) -> Tensor:
    """Return ``[..., M, N]``: the float32 product of the rows' scales."""
    left = torch.ones_like(a.values[..., 0]) if a.scale is None else a.row_scale()
    right = torch.ones_like(b.values[..., 0]) if b.scale is None else b.row_scale()
    return left[..., :, None] * right[..., None, :]


class Accumulator(ABC):
    """How the products of a gemm are summed. Not differentiable: a layer's backward pass is a gemm of its own."""

    @property
    def on_codes(self) -> bool:
        """Whether it models what happens to the codes themselves, before their scales: then it wants `Codes`."""
        return False

    @property
    def any_product(self) -> bool:
        """Whether it adds the results of any `Product`, not of ordinary multiplication alone."""
        return False

    @abstractmethod
    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """Return ``[..., M, N]`` of ``a [..., M, K]`` and ``b [..., N, K]``, scales put back.

        float32; or float64 where the sum has more bits than float32, ready to be rounded once (`Exact`, `Fixed`).
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return its spelling."""

    def accept(self, product: Product) -> None:
        """Raise InputError where this accumulator cannot add the results of ``product``."""
        if product != TIMES and not self.any_product:
            raise InputError(
                f"accumulator {self} adds ordinary products only, found {product}; use fp32 or a sequential one"
            )


@dataclass(frozen=True)
class Library(Accumulator):
    """float32 products and sums by the library's own matmul, in whatever order it takes: what every backend calls fp32.

    float64 operands are summed in float64.
    """

    @property
    def any_product(self) -> bool:
        """Any."""
        return True

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`."""
        return product.matmul(tensor_of(a), tensor_of(b))  # differentiable, where the product is

    def __str__(self) -> str:
        return "fp32"


FP32 = Library()


def patched(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``total`` with the sums that hold an infinity or a NaN taken from float64's, where any operand has one."""
    if a.isfinite().all() and b.isfinite().all():
        return total
    plain = a.double() @ b.double().mT
    return torch.where(plain.isfinite(), total, plain.to(total.dtype))


def finite(x: Tensor) -> Tensor:
    """Return ``x`` with infinities and NaN replaced by zero."""
    return x.nan_to_num(0.0, 0.0, 0.0)
