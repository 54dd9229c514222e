"""How far a figure would move on another sample of the same kind of texts, pictures or pairs: the paired bootstrap.

Units (windows of text, pictures, sentence pairs) are drawn anew with replacement, the same draws for both models, so
that what makes a unit hard for either cancels. The interval holds the middle share of the figures found.
Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 16 (percentile intervals).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError

#: maps how often each unit counts, float64 ``[..., units]``, to the figure of each such sample, ``[...]``
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """A figure and the range that most other samples would give.

    Attributes:
        value: on the sample itself.
        low, high: the range.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the range."""
        return (self.high - self.low) / 2

    def __contains__(self, value: float) -> bool:
        """Whether ``value`` lies in the range."""
        return self.low <= value <= self.high


def resamples(units: int, draws: int = 1000, seed: int = 0) -> Tensor:
    """Return how often each unit is in each of ``draws`` samples of ``units`` units, float64 ``[draws, units]``."""
    if units < 1 or draws < 1:
        raise InputError(f"bootstrap: expected at least one unit and one draw, found {units} and {draws}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(units, (draws, units), generator=generator)
    return torch.zeros(draws, units, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(draws, units, dtype=torch.float64)
    )


def bootstrap(statistic: Statistic, units: int, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Return ``statistic`` of all units, each counted once, and its interval; nan samples are left out."""
    if not 0 < level < 1:
        raise InputError(f"bootstrap: level {level} is out of range; expected between 0 and 1")
    found = statistic(resamples(units, draws, seed)).double()
    found = found[~found.isnan()]
    value = float(statistic(torch.ones(units, dtype=torch.float64)))
    if not len(found):
        return Interval(value, float("-inf"), float("inf"))
    ends = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(value, float(ends[0]), float(ends[1]))


def mean_of(values: Tensor, counts: Tensor | None = None) -> Statistic:
    """Return the statistic ``sum of values / sum of counts`` (both ``[units]``; counts are 1 by default)."""
    sums, sizes = values.double().cpu(), (torch.ones_like(values) if counts is None else counts).double().cpu()
    return lambda weights: (weights @ sums) / (weights @ sizes)
