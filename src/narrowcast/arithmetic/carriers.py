"""What an operation computes in before its result is rounded, and how results get back to where they belong.

float32 kernels round to 24 bits before the format rounds again. For + - * / and square roots that is innocent where
the format has at most 11 significant bits (2 p + 2 <= 24: Figueroa, "When is double rounding innocuous?", 1995); wider
ones, posits of 16 bits for one, are computed in float64, which serves up to 25.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from narrowcast.formats import Format


@lru_cache(maxsize=256)
def digits(fmt: Format) -> int:
    """Return how many significant bits a value of ``fmt`` has at most (13 for posit16_1, 4 for e4m3fn)."""
    if fmt.bits > 16:
        return fmt.precision + 1
    values = fmt.values()
    significand = (values[values != 0].frexp().mantissa * 2.0**24).long()
    lowest = int((significand & -significand).amin()) if significand.numel() else 1 << 23
    return 24 - (lowest.bit_length() - 1)


@lru_cache(maxsize=256)
def fits(fmt: Format, dtype: torch.dtype) -> bool:
    """Return whether ``dtype`` holds every number of ``fmt``; float32 and float64 hold those of all formats."""
    if dtype in (torch.float32, torch.float64):
        return True
    if fmt.bits > 16:
        return False
    values = fmt.values()
    return bool((values.to(dtype).double() == values).all())


def is_float32(floats: Iterable[Tensor]) -> bool:
    """Return whether the arguments of an operation are float32, apart from numbers (0-d) beside tensors."""
    floats = list(floats)
    dtypes = {t.dtype for t in floats if t.dim()} or {t.dtype for t in floats}
    return dtypes == {torch.float32}


class Twins:
    """float64 stand-ins for the float32 arguments of one operation; what the operation writes goes back rounded."""

    def __init__(self, wide: bool) -> None:
        self.wide = wide
        self._of: dict[int, Tensor] = {}
        self._original: dict[int, Tensor] = {}

    def arguments(self, tree: Any) -> Any:
        """Return a nest of arguments with each float32 tensor replaced by its stand-in."""
        return tree_map_only(Tensor, self._twin, tree) if self.wide else tree

    def _twin(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x
        if id(x) not in self._of:
            twin = self._of[id(x)] = x.double()
            self._original[id(twin)] = x
        return self._of[id(x)]

    def settle(self, result: Any, written: list[Tensor], rounded: Callable[[Tensor], Tensor]) -> Any:
        """Round what was written, in place, and what was returned; return the result in the program's own dtypes."""
        done = set()
        for tensor in written:
            if tensor.is_floating_point():
                tensor.copy_(rounded(self._of.get(id(tensor), tensor)))
                done.add(id(tensor))

        def settled(x: Tensor) -> Tensor:
            x_or_original = self._original.get(id(x), x)
            if id(x_or_original) in done or not x.is_floating_point():
                return x_or_original
            if self.wide and x.dtype == torch.float64:
                return torch.empty_like(x, dtype=torch.float32).copy_(rounded(x))
            return x.copy_(rounded(x))

        return tree_map_only(Tensor, settled, result)
