"""What a scale is, and what every scale rule answers: the two types that all of this package speak of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.formats import Format
from narrowcast.scaling.history import Delayed
from narrowcast.scaling.numbers import ONE, Numbers


@dataclass(frozen=True)
class Scale:
    """The scales of one tensor.

    Attributes:
        stored: what a checkpoint keeps, one per tile: codes of the scale format, or float32 itself.
        back: factors, applied in this order, that multiply a value to get back; broadcast against the blocks.
        into: the one factor that multiplies the source before rounding; float64 where the rule divides.
        tensor: the second level, float32 (float64 where the rule divides), or None.
        numbers: what the last axis of all of them holds: one number a tile, or two (`numbers`).
        quotient: dtype that a product with a float64 ``into`` is rounded to before the element format sees it.
    """

    stored: Tensor
    back: tuple[Tensor, ...]
    into: Tensor
    tensor: Tensor | None = None
    numbers: Numbers = ONE
    quotient: torch.dtype = torch.float32

    def scaled(self, blocks: Tensor) -> Tensor:
        """Return ``blocks`` times ``into``: what is rounded."""
        return self.numbers.enter(blocks, self.numbers.apart(self.into), self.times)

    def times(self, x: Tensor, into: Tensor) -> Tensor:
        """Return ``x`` (float32) times the part of ``into`` that fits it, as float32."""
        if into.dtype != torch.float64:
            return x * into
        return (x.double() * into).to(self.quotient).float()

    def enter(self, blocks: Tensor) -> Tensor:
        """Return ``blocks`` (float32) as the element format is to see them: times ``into``.

        In a poisoned tile that is the one positive NaN everywhere: the sign of a product with NaN differs by processor.
        """
        if not self.back:
            return blocks
        poison = self.numbers.apart(self.into)[0].isnan()
        return torch.where(poison, float("nan"), self.scaled(blocks))

    def apply(self, values: Tensor) -> Tensor:
        """Multiply ``values`` (blocks, float32) back, in place."""
        for factor in self.back:
            values = self.numbers.leave(values, self.numbers.apart(factor))
        return values


class ScaleRule(ABC):
    """Turns tile maxima into scales for one element format."""

    @abstractmethod
    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return the scales for ``amax`` (float32, non-negative, any shape that broadcasts to the blocks)."""

    @abstractmethod
    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Return `Scale.back` from what was stored."""

    def extent(self, blocks: Tensor, inside: tuple[int, ...]) -> Tensor:
        """Return what `scale` takes: the largest magnitude of each tile, over the axes ``inside`` (kept, of size 1)."""
        return blocks.abs().amax(inside, keepdim=True)

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits stored per tile."""

    def total_bits(self, tiles: int) -> int:
        """Bits stored for a tensor of so many tiles."""
        return tiles * self.bits + self.tensor_bits

    @property
    def tensor_bits(self) -> int:
        """Bits stored once per tensor."""
        return 0

    @property
    def numbers(self) -> Numbers:
        """What a tile has: one number, or two (`Scale.numbers`)."""
        return ONE

    @property
    def in_order(self) -> bool:
        """Whether what is stored depends on which tile is the how-manieth, so that no rows can be cut out."""
        return False

    @property
    def needs_amax(self) -> bool:
        """Whether the data decide the scale at all."""
        return True

    @property
    def delayed(self) -> Delayed | None:
        """The history that replaces the current amax, or None."""
        return None
