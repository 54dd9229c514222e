"""Scale search for the outputs of whole rows: errors of tiles that share a row cancel or add up.

AWQ clips each group of weights for what the group alone does to the outputs, and leaves out the products of two groups'
errors. Here each tile's scale is chosen beside what the row's other tiles do at present. `bench/ptq.py` has both.
Sources: the clipping is AWQ's (Lin et al. 2023); the passes are QuantEase's (Behdin et al. 2023), there over codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.ptq.search import LeastOutputError, Search, checked_grid
from narrowcast.quantize import Cast, Settled


@dataclass(frozen=True)
class LeastRowError(Search):
    """The ratios with the least squared error of the outputs, ``d H d^T`` over whole rows.

    `LeastOutputError` asks what each tile does to the outputs alone, although errors of tiles that share a row cancel
    or add up. So this begins with its answer and takes the tiles of all rows from left to right, each time with the
    ratio that is best beside what the row's other tiles do now (coordinate descent). It never does worse in all, by
    construction: a second level above the tiles' scales can move against the steps, and then the first answer stays.
    Time as of another grid and a product by H. Tiles of one row, ``1xN``.

    Attributes:
        steps, smallest: the ratios, as of `LeastOutputError`.
        passes: how often all tiles are taken.
    """

    steps: int = 20
    smallest: float = 0.5
    passes: int = 1

    def __post_init__(self) -> None:
        checked_grid(self.steps, self.smallest)
        if self.passes < 1:
            raise InputError(f"scale search: expected passes >= 1, found {self.passes}")

    def ratio(self, x: Tensor, cast: Cast, hessian: Tensor | None = None) -> Tensor | None:
        """Return the ratios; `LeastOutputError`'s where there is no H, a row is one tile, or nothing is won."""
        first = LeastOutputError(self.steps, self.smallest).ratio(x, cast, hessian)
        if hessian is None or first is None or first.dim() == 2:
            return first
        found = self._descended(x, cast, hessian, first)
        return found if _error(x, cast, hessian, found) < _error(x, cast, hessian, first) else first

    def _descended(self, x: Tensor, cast: Cast, hessian: Tensor, first: Tensor) -> Tensor:
        ratios = LeastOutputError(self.steps, self.smallest).ratios
        tried, found = [cast.settle(x, x.new_tensor(ratio)) for ratio in ratios], first.clone()
        d = cast.settle(x, found).apply(x) - x
        pull = d @ hessian
        for number in [*range(found.shape[1])] * self.passes:
            here = slice(number * cast.tile.cols, (number + 1) * cast.tile.cols)
            h = hessian[here, here]
            best, change = _best(x[:, here], number, tried, h, pull[:, here] - d[:, here] @ h)
            pull.addmm_(change - d[:, here], hessian[here])
            found[:, number, 0], d[:, here] = x.new_tensor(ratios)[best], change
        return found

    def __str__(self) -> str:
        return "row-mse"


def _error(x: Tensor, cast: Cast, hessian: Tensor, ratio: Tensor) -> float:
    d = cast.settle(x, ratio).apply(x) - x
    return float(((d @ hessian) * d).sum())


def _best(x: Tensor, number: int, tried: list[Settled], h: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of ``tried`` is best for one tile of every row, the first of equals, ``[N]``; and its differences.

    Args:
        x: the tile's columns ``[N, B]``.
        number: of the tile within its row.
        tried: the cast with its scales settled in several ways.
        h: the tile's own block of H, ``[B, B]``.
        others: what the differences of the row's other tiles do to these columns, ``[N, B]``.
    """
    least, best = x.new_full((len(x),), float("inf")), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    kept = torch.zeros_like(x)
    for index, settled in enumerate(tried):
        change = _tile(settled, x, number).sub_(x)
        error = (change @ h).add_(others, alpha=2).mul_(change).sum(1)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, index, best)
        kept = torch.where(better[:, None], change, kept)
    return best, kept


def _tile(settled: Settled, x: Tensor, number: int) -> Tensor:
    """Return what the columns ``x`` of tile ``number`` become under their own scales."""

    def part(factor: Tensor) -> Tensor:
        if factor.dim() < 3:
            return factor  # the whole tensor's
        mine = factor[:, number]
        return mine.mT.unsqueeze(-1) if settled.scale.numbers.count == 2 else mine

    return settled.round(x, part(settled.scale.into), tuple(part(factor) for factor in settled.scale.back))
