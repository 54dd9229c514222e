"""A scale and a zero point: a tile of integers spends its codes between its least and its largest value.

    scale = rule((max - min) / steps),  zero = low + round(-min / scale),  code = round(x / scale + zero)

with min at most 0 and max at least 0, so that zero is a code: what compressed-tensors, GPTQ and AWQ call asymmetric.
Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks", section 2.1; export-reference, section 3.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer
from narrowcast.scaling.by_sign import sides
from narrowcast.scaling.numbers import ZERO, Numbers
from narrowcast.scaling.rule import Scale, ScaleRule
from narrowcast.scaling.scales import Narrow, Wide


@dataclass(frozen=True)
class ZeroPoint(ScaleRule):
    """``rule`` for the whole span of a tile, and the code of zero; spelled ``RULE-zeroN``.

    Attributes:
        rule: of the scale: ``fp32``, or a narrow float.
        width: bits of the zero point and of the codes, which must be signed integers with both ends (``int4_full``).
    """

    rule: ScaleRule
    width: int

    def __post_init__(self) -> None:
        if not (self.rule == Wide() or isinstance(self.rule, Narrow)):
            raise InputError(f"scale {self}: zero points take a scale of fp32 or of a narrow float such as bfloat16")
        if not 2 <= self.width <= 8:
            raise InputError(f"scale {self}: zero points have 2 to 8 bits")

    def extent(self, blocks: Tensor, inside: tuple[int, ...]) -> Tensor:
        """Return the largest value and the largest negated value of each tile, at least 0, in its last axis."""
        return sides(blocks, inside)

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return pairs (scale, zero point); a value that is not finite poisons both."""
        full = isinstance(element, Integer) and element.signed and not (element.symmetric or element.fraction)
        if not full or element.bits != self.width:
            raise InputError(
                f"scale {self}: zero points of {self.width} bits are for int{self.width}_full, not {element}"
            )
        above, below = amax[..., :1], amax[..., -1:]
        steps = Integer("steps", self.width, signed=False)  # its maximum is how many steps lie between the ends
        one = self.rule.scale(above + below, steps)
        low = -(2.0 ** (self.width - 1))
        zero = (low + torch.round(below / one.back[0])).clamp(low, -low - 1)
        stored = torch.cat([one.stored, zero.nan_to_num().to(one.stored.dtype)], -1)
        into = torch.cat([one.into, zero], -1)
        return replace(one, stored=stored, back=self.restore(stored, None), into=into, numbers=ZERO)

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Decode the scale; the zero point is a whole number."""
        (factor,) = self.rule.restore(stored[..., :1], None)
        return (torch.cat([factor, stored[..., -1:].float()], -1),)

    @property
    def bits(self) -> int:
        """A scale and a code."""
        return self.rule.bits + self.width

    @property
    def numbers(self) -> Numbers:
        """A scale and a zero point."""
        return ZERO

    def __str__(self) -> str:
        return f"{self.rule}-zero{self.width}"
