"""Narrow running sums, one product after another; and sums of partial sums, in every order that kernels use."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.accumulate.accumulator import Accumulator, Codes, Operand, codes_of, pair_scale, tensor_of
from narrowcast.accumulate.doubles import odd_sum, rounded
from narrowcast.accumulate.product import TIMES, Product
from narrowcast.errors import InputError
from narrowcast.formats import NEAREST_EVEN, Format, Rounding


@dataclass(frozen=True)
class Sequential(Accumulator):
    """A running sum in ``format``, k ascending: ``sum = round(sum + a * b)``.

    What is modelled: one register of that format, starting from zero; with ``fused`` a fused multiply-add (one rounding
    a step: FMA units, IEEE 754-2019), without it the product is rounded to the format first. Each step is exact
    arithmetic followed by one rounding, so the result is defined to the last bit, on every device.

    Attributes:
        format: of the running sum.
        rounding: deterministic.
        fused: whether the product enters the sum unrounded.
    """

    format: Format
    rounding: Rounding = NEAREST_EVEN
    fused: bool = True

    def __post_init__(self) -> None:
        if self.rounding.random:
            raise InputError(f"accumulator {self}: a running sum rounds deterministically here, found {self.rounding}")

    @property
    def any_product(self) -> bool:
        """Any."""
        return True

    def add(self, total: Tensor, term: Tensor) -> Tensor:
        """Return ``round(total + term)``; float64 in and out."""
        return rounded(odd_sum(total, term), self.format, self.rounding)

    def round(self, x: Tensor) -> Tensor:
        """Return ``x`` in the format, as float64."""
        return rounded(x, self.format, self.rounding)

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`; float64 operands are refused where float32 does not hold them."""
        a, b = (_float32(tensor_of(x).detach(), self) for x in (a, b))
        total = (a[..., :, None, :0].sum(-1) + b[..., None, :, :0].sum(-1)).double()  # zeros [..., M, N]
        for k in range(a.shape[-1]):
            term = product(a[..., :, None, k], b[..., None, :, k])
            total = self.add(total, term if self.fused else self.round(term))
        return total.float()

    @property
    def options(self) -> str:
        """What differs from a fused, nearest-even sum, as its spelling ends."""
        mode = "" if self.rounding is NEAREST_EVEN else f"+{self.rounding}"
        return f"{mode}{'' if self.fused else '+unfused'}"

    def __str__(self) -> str:
        return f"{self.format}-sequential{self.options}"


def _float32(x: Tensor, accumulator: Accumulator) -> Tensor:
    narrow = x.float()
    if x.dtype == torch.float64 and not torch.equal(narrow.double(), x):
        raise InputError(f"accumulator {accumulator}: its products are of float32 operands, found wider float64 ones")
    return narrow


class Order(ABC):
    """How K is cut into chunks, and in which order their sums are added."""

    @abstractmethod
    def size(self, k: int) -> int:
        """Return how many elements a chunk has."""

    @abstractmethod
    def combine(self, parts: Tensor, outer: Sequential) -> Tensor:
        """Add ``parts [..., T, M, N]`` (float64, in the outer format) along T."""


def _in_turn(parts: Tensor, outer: Sequential) -> Tensor:
    total = torch.zeros_like(parts[..., 0, :, :])
    for part in parts.unbind(-3):
        total = outer.add(total, part)
    return total


@dataclass(frozen=True)
class Every(Order):
    """Chunks of ``length``, added in turn: tiles of a kernel's main loop, promotion every N, a chain before a spill."""

    length: int

    def size(self, k: int) -> int:
        """See `Order`."""
        return self.length

    def combine(self, parts: Tensor, outer: Sequential) -> Tensor:
        """See `Order`."""
        return _in_turn(parts, outer)

    def __str__(self) -> str:
        return f"every{self.length}"


@dataclass(frozen=True)
class Split(Order):
    """``parts`` contiguous chunks, added in turn: split-K kernels, and tensor parallelism over that many devices."""

    parts: int

    def size(self, k: int) -> int:
        """See `Order`."""
        return max(1, -(-k // self.parts))

    def combine(self, parts: Tensor, outer: Sequential) -> Tensor:
        """See `Order`."""
        return _in_turn(parts, outer)

    def __str__(self) -> str:
        return f"split{self.parts}"


@dataclass(frozen=True)
class Tree(Order):
    """Chunks of ``length``, added as a balanced binary tree over the chunks, a last odd one passed up.

    A device that holds 2**n neighbouring chunks computes one subtree, so cutting K over 1, 2, 4, ... devices of equal,
    power-of-two shares and adding their sums as a tree gives the same bits (tree-based invariant kernels, "Give me
    FP32 or give me death?", 2025, and its repository).
    """

    length: int

    def size(self, k: int) -> int:
        """See `Order`."""
        return self.length

    def combine(self, parts: Tensor, outer: Sequential) -> Tensor:
        """See `Order`."""
        parts = outer.round(parts)
        while parts.shape[-3] > 1:
            pairs = parts.shape[-3] // 2 * 2
            sums = outer.add(parts[..., 0:pairs:2, :, :], parts[..., 1:pairs:2, :, :])
            parts = torch.cat([sums, parts[..., pairs:, :, :]], dim=-3)
        return parts.squeeze(-3)

    def __str__(self) -> str:
        return f"tree{self.length}"


@dataclass(frozen=True)
class Chunked(Accumulator):
    """Sums within chunks of K by one accumulator, the sums of chunks by another: promotion, tiles, split-K, trees.

    Each chunk's sum is rounded to the outer format, times its operands' scales (their float32 product), and added
    with one rounding: what ``C += scale * P`` on ordinary cores does after a tensor core's partial sum P.

    Attributes:
        inner: sums within a chunk.
        order: how K is cut and in which order the chunks are added.
        outer: adds the chunks' sums; only its format and rounding count.
    """

    inner: Accumulator
    order: Order
    outer: Sequential

    def __post_init__(self) -> None:
        if isinstance(self.inner, Chunked):
            raise InputError(f"accumulator {self}: chunks of chunks are not modelled; give one inner accumulator")
        if not self.outer.fused:
            raise InputError(f"accumulator {self}: chunks are added fused; drop '+unfused'")

    @property
    def on_codes(self) -> bool:
        """Whether the inner accumulator wants codes."""
        return self.inner.on_codes

    @property
    def any_product(self) -> bool:
        """Whether the inner accumulator takes any product."""
        return self.inner.any_product

    def matmul(self, a: Operand, b: Operand, product: Product = TIMES) -> Tensor:
        """See `Accumulator.matmul`."""
        a, b = (codes_of(x) if self.on_codes else Codes(tensor_of(x)) for x in (a, b))
        size = self.order.size(a.values.shape[-1])
        right = b.chunks(size)
        cost = right.values.shape[-3] * right.values.shape[-2]
        blocks = [self._rows(left.chunks(size), right, product) for left in a.rows(cost)]
        return torch.cat(blocks, dim=-2).float()

    def _rows(self, a: Codes, b: Codes, product: Product) -> Tensor:
        """Return the sums of some rows of ``a``; operands cut into chunks ``[..., T, R, size]``."""
        if a.values.shape[-3] == 0:  # K is 0
            return (a.values.sum((-3, -1))[..., :, None] + b.values.sum((-3, -1))[..., None, :]).double()
        left, right = (Codes(x.values, None, x.smallest_normal) for x in (a, b))
        parts = self.outer.round(self.inner.matmul(left, right, product).double())
        if a.scale is not None or b.scale is not None:
            parts = parts * pair_scale(a, b).double()
        return self.order.combine(parts, self.outer)

    def __str__(self) -> str:
        return f"{self.inner}/{self.order}/{self.outer.format}{self.outer.options}"


def order(text: str) -> Order:
    """Parse ``every128``, ``split4`` or ``tree32``."""
    found = re.fullmatch(r"(every|split|tree)([1-9]\d*)", text)
    if found is None:
        raise InputError(f"unknown order {text!r}: expected everyN, splitN or treeN, e.g. every128")
    kinds: dict[str, Callable[[int], Order]] = {"every": Every, "split": Split, "tree": Tree}
    return kinds[found[1]](int(found[2]))
