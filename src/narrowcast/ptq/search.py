"""Scale search: which share of a tile's largest magnitude its scale should be made for.

Clipping the few largest values buys a finer grid for all others. A search answers with one ratio per tile, which
`Cast.settle` multiplies the tile's maximum by before the scale rule rounds it: so every search works with every
format, tile and scale rule, and it judges the scale that will be stored, not the one before rounding.
Sources: sheet 42 (p-norm 2.4, 100 steps down to 0.2; Egiazarian et al. 2025), sheet 22 (percentile; Shen et al. 2024).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.quantize import Cast, Settled
from narrowcast.scaling.numbers import SIGNS


class Search(ABC):
    """Finds the share of each tile's maximum to scale by."""

    @abstractmethod
    def ratio(self, x: Tensor, cast: Cast, hessian: Tensor | None = None) -> Tensor | None:
        """Return one ratio per tile (of `Settled.tiles`), or None for 1.

        Args:
            x: weights ``[N, K]``, float32, already transformed.
            cast: a cast without transform.
            hessian: ``x^T x`` of the calibration rows ``[K, K]``, which says how much an error in each column matters;
                or None for all alike.
        """

    def settle(self, x: Tensor, cast: Cast, hessian: Tensor | None = None, what: str = "weight") -> Settled:
        """Return ``cast`` with its scales settled for ``x`` at the ratios found."""
        return cast.settle(x, self.ratio(x, cast, hessian), what)


@dataclass(frozen=True)
class AbsMax(Search):
    """The whole maximum: nothing is clipped beyond what the scale's own rounding clips."""

    def ratio(self, x: Tensor, cast: Cast, hessian: Tensor | None = None) -> Tensor | None:
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

    def ratio(self, x: Tensor, cast: Cast, hessian: Tensor | None = None) -> Tensor | None:
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


class _Grid(Search):
    """Tries ratios from 1 downwards and keeps, for every tile, the one with the least error; the largest of equals."""

    steps: int
    smallest: float
    #: whether a tile's error is the sum of its elements', so that scales by sign can be searched apart
    adds_up: ClassVar[bool] = False

    @property
    def ratios(self) -> list[float]:
        """The ratios that are tried, from 1 downwards."""
        return [1 - step * (1 - self.smallest) / self.steps for step in range(self.steps)]

    @abstractmethod
    def error(self, d: Tensor, cast: Cast, hessian: Tensor | None) -> Tensor:
        """Return the error of each tile, shaped as `Settled.tiles`, from the differences ``d`` ``[N, K]``."""

    def ratio(self, x: Tensor, cast: Cast, hessian: Tensor | None = None) -> Tensor | None:
        """Return the best of the tried ratios for every tile."""
        best: Tensor | None = None
        least: Tensor | None = None
        for ratio in self.ratios:
            d = cast.settle(x, x.new_tensor(ratio)).apply(x) - x
            error = self._error_by_scale(d, x, cast, hessian)
            if best is None or least is None:
                best, least = torch.full_like(error, ratio), error
                continue
            better = error < least
            best, least = torch.where(better, ratio, best), torch.where(better, error, least)
        return best

    def _error_by_scale(self, d: Tensor, x: Tensor, cast: Cast, hessian: Tensor | None) -> Tensor:
        """Return the error that each scale answers for: where the signs have their own, either side's apart."""
        if not (self.adds_up and cast.scale.numbers is SIGNS):
            return self.error(d, cast, hessian)
        sides = (torch.where(x < 0, 0.0, d), torch.where(x < 0, d, 0.0))
        return torch.cat([self.error(side, cast, hessian) for side in sides], -1)


@dataclass(frozen=True)
class LeastError(_Grid):
    """The ratio with the least sum of ``h * |x - cast(x)| ** power`` over the tile, h = diag(H) where there is one.

    Attributes:
        power: 2 for the mean square; 2.4 is MR-GPTQ's and llm-compressor's.
        steps: ratios tried.
        smallest: where they end; the first is 1.
    """

    adds_up: ClassVar[bool] = True
    power: float = 2.4
    steps: int = 100
    smallest: float = 0.2

    def __post_init__(self) -> None:
        checked_grid(self.steps, self.smallest)
        if not self.power > 0:
            raise InputError(f"scale search: expected power > 0, found {self.power}")

    def error(self, d: Tensor, cast: Cast, hessian: Tensor | None) -> Tensor:
        """Return the tiles' weighted sums of powers."""
        error = d.abs_().pow_(self.power)
        if hessian is not None:
            error *= hessian.diagonal()
        blocks, inside = cast.tile.blocks(cast.tile.padded(error))
        return blocks.sum(inside, keepdim=True)

    def __str__(self) -> str:
        return "mse" if self.power == 2 else f"norm{self.power:g}"


@dataclass(frozen=True)
class LeastOutputError(_Grid):
    """The ratio with the least squared error of the outputs that the tile alone causes, ``d H d^T`` within the tile.

    AWQ's clipping (Lin et al. 2023), with H for its sampled inputs. Tiles of one row, ``1xN``.
    """

    steps: int = 20
    smallest: float = 0.5

    def __post_init__(self) -> None:
        checked_grid(self.steps, self.smallest)

    def error(self, d: Tensor, cast: Cast, hessian: Tensor | None) -> Tensor:
        """Return the tiles' quadratic forms; plain squares where there is no H."""
        if cast.tile.rows != 1:
            raise InputError(f"scale search: the error of outputs is defined for tiles of one row, found {cast.tile}")
        d = cast.tile.padded(d)
        blocks, _ = cast.tile.blocks(d)
        if hessian is None:
            return blocks.square().sum(-1, keepdim=True)
        size = blocks.shape[-1]
        short = d.shape[1] - hessian.shape[0]
        h = torch.nn.functional.pad(hessian, (0, short, 0, short))
        count = d.shape[1] // size
        h = h.view(count, size, count, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)  # [tiles of a row, size, size]
        moved = torch.einsum("ngk,gkl->ngl", blocks.view(len(d), count, size), h)
        error = (moved * blocks.view(len(d), count, size)).sum(-1, keepdim=True)
        return error if blocks.dim() == 3 else error[:, 0]

    def __str__(self) -> str:
        return "output-mse"


def checked_grid(steps: int, smallest: float) -> None:
    """Raise InputError for a grid of ratios that is none."""
    if not (steps >= 1 and 0 < smallest <= 1):
        raise InputError(f"scale search: expected steps >= 1 and 0 < smallest <= 1, found {steps} and {smallest}")
