"""What the numbers that a tile has do: one scale; a scale for either sign; a scale and a zero point.

Two numbers lie side by side in the last axis of whatever holds one entry a tile, and apart (`apart`) where they meet
values. A *zero point* is the code of zero, a whole number: ``code = round(x / scale + zero)``, ``x ~ (code - zero) *
scale``.
"""

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from narrowcast.errors import InputError

#: (x, what multiplies in) -> the product, as a `Scale` makes it
Times = Callable[[Tensor, Tensor], Tensor]


class Numbers(Enum):
    """How the numbers of a tile meet its values. (Members of an enum, because `torch.compile` can follow those.)"""

    ONE = 1
    SIGNS = 2
    ZERO = 3

    @property
    def count(self) -> int:
        """Numbers of a tile."""
        return 1 if self is Numbers.ONE else 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes in front of what holds the numbers of a tile apart for every value: none for one number."""
        return () if self is Numbers.ONE else (2,)

    def enter(self, x: Tensor, numbers: tuple[Tensor, ...], times: Times) -> Tensor:
        """Return ``x`` (float32) as the element format is to see it; ``numbers`` multiply in, but for zero points."""
        if self is Numbers.SIGNS:
            return times(x, torch.where(x < 0, numbers[1], numbers[0]))
        product = times(x, numbers[0])
        return product + numbers[1] if self is Numbers.ZERO else product

    def leave(self, values: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        """Return rounded ``values`` on their way back, in place."""
        if self is Numbers.SIGNS:
            return values.mul_(torch.where(values < 0, numbers[1], numbers[0]))
        values = values.sub_(numbers[1]) if self is Numbers.ZERO else values
        return values.mul_(numbers[0])

    def check_products(self, what: str) -> None:
        """Raise InputError where the codes of a cast, named ``what``, cannot be multiplied before they are decoded."""
        if self is Numbers.ZERO:
            raise InputError(f"cast {what}: accumulators on codes know no zero points")

    def unstacked(self, factor: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers that `shape` puts in the first axis of ``factor``; one as it is."""
        return (factor,) if self is Numbers.ONE else factor.unbind(0)

    def apart(self, factor: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers in the last axis of ``factor``, each with that axis at size 1; one as it is."""
        return (factor,) if self is Numbers.ONE else (factor[..., :1], factor[..., -1:])


ONE, SIGNS, ZERO = Numbers.ONE, Numbers.SIGNS, Numbers.ZERO
