"""Separate scales for the two signs: each side of a tile uses its whole half of the grid.

    positive values: s+ = rule(max(x, 0)),  negative values: s- = rule(max(-x, 0))

What a zero point is to integers, at the same price: a second number per tile. The sign of a code says which scale
multiplies it back. A side without values has the scale 1.
Source: Zhang et al. 2023, "AFPQ: Asymmetric Floating Point Quantization for LLMs", section 3.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format
from narrowcast.scaling.numbers import ONE, SIGNS, Numbers
from narrowcast.scaling.rule import Scale, ScaleRule


def sides(blocks: Tensor, inside: tuple[int, ...]) -> Tensor:
    """Return the largest value and the largest negated value of each tile, at least 0, in its last axis."""
    return torch.cat([(sign * blocks).clamp_min(0.0).amax(inside, keepdim=True) for sign in (1, -1)], -1)


@dataclass(frozen=True)
class BySign(ScaleRule):
    """``rule``, once for the values from 0 up and once for those below.

    Attributes:
        rule: a rule of one number per tile, without history and second level; spelled ``RULE-signs``.
    """

    rule: ScaleRule

    def __post_init__(self) -> None:
        plain = self.rule.needs_amax and self.rule.bits and not self.rule.tensor_bits and self.rule.numbers is ONE
        if not plain or self.rule.delayed is not None:
            raise InputError(f"scale {self}: the signs' scales take a rule of one number per tile, such as float16")

    def extent(self, blocks: Tensor, inside: tuple[int, ...]) -> Tensor:
        """Return the largest value and the largest negated value of each tile, in its last axis."""
        return sides(blocks, inside)

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return pairs of scales; a value that is not finite poisons both sides."""
        finite = amax.isfinite().all(-1, keepdim=True)
        one = self.rule.scale(torch.where(finite, amax, float("nan")), element)
        return replace(one, numbers=SIGNS)

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Decode both sides."""
        return self.rule.restore(stored, None)

    @property
    def bits(self) -> int:
        """Two numbers per tile."""
        return 2 * self.rule.bits

    @property
    def numbers(self) -> Numbers:
        """A scale for either sign."""
        return SIGNS

    def __str__(self) -> str:
        return f"{self.rule}-signs"
