"""What every way of keeping a tensor between uses can do.

A tensor that is kept (an optimizer's state, a master weight) is seen as a flat run of elements in memory order, so that
a group of 128 means 128 neighbours whatever the shape. It becomes a few plain tensors, which `torch.save`, safetensors
and a debugger understand, and comes back as float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from narrowcast.formats import Stream

Stored = dict[str, Tensor]


class Storage(ABC):
    """A way of keeping a tensor; a frozen value, spelled by ``str`` and read back by `storage`."""

    @abstractmethod
    def store(self, x: Tensor, stream: Stream | None = None) -> Stored:
        """Return the plain tensors that ``x`` (float32 ``[n]``) is kept as; ``stream`` where random bits are drawn."""

    @abstractmethod
    def load(self, stored: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the ``count`` values, float32 ``[count]``."""

    @abstractmethod
    def bits_per_element(self, count: int) -> float:
        """Return the bits that each of ``count`` elements takes, scales counted."""

    @property
    def random(self) -> bool:
        """Whether storing draws random bits."""
        return False

    def carried(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Return the parts that a tensor of ``dtype`` can itself hold exactly: a bfloat16 parameter its own codes."""
        return ()

    def zeros(self, count: int, device: torch.device | str | None = None) -> Stored:
        """Return ``count`` zeros as they are kept."""
        return self.store(torch.zeros(count, device=device), Stream())
