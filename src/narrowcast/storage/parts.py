"""Kept as an unevaluated sum of narrow numbers: two bfloat16 hold 17 bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Multi, Stream
from narrowcast.storage.coded import DTYPES
from narrowcast.storage.storage import Storage, Stored

_NAMES = ("high", "low", "lowest", "last")


@dataclass(frozen=True)
class Parts(Storage):
    """Two to four parts of a 16-bit format: ``high``, ``low``, ...

    Of a weight, the low part is Kahan's compensation: what rounding took from the last update, put back before the next
    one (Kahan 1965; Zamirai et al. 2020, "Revisiting BFloat16 training").
    """

    multi: Multi

    def __post_init__(self) -> None:
        if self.multi.format.name not in ("bfloat16", "float16"):
            raise InputError(f"storage {self.multi}: expected parts of bfloat16 or float16")

    def store(self, x: Tensor, stream: Stream | None = None) -> Stored:
        """Return the parts, the largest first."""
        return dict(zip(_NAMES, (part.to(self.dtype) for part in self.multi.split(x)), strict=False))

    def load(self, stored: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the sum in float32, the smallest parts first."""
        names = _NAMES[: self.multi.parts]
        total = stored[names[-1]].float()
        for name in reversed(names[:-1]):
            total = stored[name].to(self.dtype).float() + total
        return total

    def bits_per_element(self, count: int) -> float:
        """Return the bits of all parts."""
        return float(self.multi.bits)

    def carried(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Return the high part, where ``dtype`` has the format's values."""
        return ("high",) if dtype in (self.dtype, torch.float32) else ()

    @property
    def dtype(self) -> torch.dtype:
        """Of each part."""
        return DTYPES[self.multi.format.name]

    def __str__(self) -> str:
        return str(self.multi)
