"""Scale search: which share of a tile's largest magnitude its scale should be made for.

Clipping the few largest values buys a finer grid for all others. A search answers with one ratio per tile, which
`Cast.settle` multiplies the tile's maximum by before the scale rule rounds it: so every search works with every
format, tile and scale rule, and it judges the scale that will be stored, not the one before rounding.
Sources: sheet 42 (p-norm 2.4, 100 steps down to 0.2; Egiazarian et al. 2025), sheet 22 (percentile; Shen et al. 2024).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.quantize import Cast, Settled


class Search(ABC):
    """Finds the share of each tile's maximum to scale by."""

    @abstractmethod
    def ratio(self, x: Tensor, cast: Cast, importance: Tensor | None = None) -> Tensor | None:
        """Return one ratio per tile (of `Settled.tiles`), or None for 1.

        Args:
            x: weights ``[N, K]``, float32, already transformed.
            cast: a cast without transform.
            importance: how much an error in each column matters, ``[K]``, or None for all alike.
        """

    def settle(self, x: Tensor, cast: Cast, importance: Tensor | None = None, what: str = "weight") -> Settled:
        """Return ``cast`` with its scales settled for ``x`` at the ratios found."""
        return cast.settle(x, self.ratio(x, cast, importance), what)


@dataclass(frozen=True)
class AbsMax(Search):
    """The whole maximum: nothing is clipped beyond what the scale's own rounding clips."""

    def ratio(self, x: Tensor, cast: Cast, importance: Tensor | None = None) -> Tensor | None:
        """Return None: 1 for every tile."""
        return None

    def __str__(self) -> str:
        return "absmax"


@dataclass(frozen=True)
class Percentile(Search):
    """The magnitude below which ``share`` percent of a tile's values lie."""

    share: float = 99.9

    def __post_init__(self) -> None:
        if not 0 < self.share <= 100:
            raise InputError(f"percentile {self.share}: expected more than 0 and at most 100")

    def ratio(self, x: Tensor, cast: Cast, importance: Tensor | None = None) -> Tensor | None:
        """Return percentile / maximum, 1 for tiles of zeros."""
        blocks, inside = cast.tile.blocks(cast.tile.padded(x).abs())
        axes = sorted(a % blocks.dim() for a in inside)
        flat = blocks.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
        count = flat.shape[-1]
        kept = flat.kthvalue(max(1, round(count * self.share / 100)), dim=-1).values
        largest = flat.amax(-1)
        found = torch.where(largest > 0, kept / largest.clamp_min(torch.finfo(x.dtype).tiny), 1.0)
        for axis in axes:
            found = found.unsqueeze(axis)
        return found

    def __str__(self) -> str:
        return f"percentile{self.share:g}"


@dataclass(frozen=True)
class LeastError(Search):
    """The ratio with the least sum of ``|x - cast(x)| ** power`` over the tile.

    Attributes:
        power: 2 for the mean square; 2.4 is MR-GPTQ's and llm-compressor's.
        steps: ratios tried.
        smallest: the last of them; the first is 1.
    """

    power: float = 2.4
    steps: int = 100
    smallest: float = 0.2

    def __post_init__(self) -> None:
        if not (self.power > 0 and self.steps >= 1 and 0 < self.smallest <= 1):
            raise InputError("scale search: expected power > 0, at least one step, and 0 < smallest <= 1")

    def ratio(self, x: Tensor, cast: Cast, importance: Tensor | None = None) -> Tensor | None:
        """Return the best of the tried ratios for every tile; the largest of equals."""
        best: Tensor | None = None
        least: Tensor | None = None
        for step in range(self.steps):
            ratio = 1 - step * (1 - self.smallest) / self.steps
            error = self._error(x, cast.settle(x, x.new_tensor(ratio)), importance)
            if best is None or least is None:
                best, least = torch.full_like(error, ratio), error
                continue
            better = error < least
            best, least = torch.where(better, ratio, best), torch.where(better, error, least)
        return best

    def _error(self, x: Tensor, settled: Settled, importance: Tensor | None) -> Tensor:
        error = (settled.apply(x) - x).abs_().pow_(self.power)
        if importance is not None:
            error *= importance
        blocks, inside = settled.cast.tile.blocks(settled.cast.tile.padded(error))
        return blocks.sum(inside, keepdim=True)

    def __str__(self) -> str:
        return "mse" if self.power == 2 else f"norm{self.power:g}"
