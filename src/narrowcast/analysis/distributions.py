"""Distributions that tensors resemble, all of mean 0 and variance 1, so that errors under them compare.

Weights are close to normal, activations and gradients have heavier tails: Laplace's, or Student's t with few degrees
of freedom. Each is given by its quantile function, which yields an expectation without drawing anything (equally
probable mid-point quantiles) as well as seeded samples.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from narrowcast.errors import InputError

QUANTILES = 1 << 16


@dataclass(frozen=True)
class Distribution:
    """A symmetric distribution of variance 1.

    Attributes:
        name: e.g. ``"student5"``.
        label: for people.
        quantile: maps float64 probabilities in (0, 1) to float64 values.
    """

    name: str
    label: str
    quantile: Callable[[Tensor], Tensor]

    def quantiles(self, count: int = QUANTILES) -> Tensor:
        """Return the ``count`` mid-point quantiles, ascending, float64 ``[count]``; shared, not to be written to."""
        return _quantiles(self, count)

    def sample(self, shape: tuple[int, ...], seed: int = 0) -> Tensor:
        """Return independent draws, float32 of ``shape``, the same for the same ``seed``; not to be written to."""
        return _sample(self, shape, seed)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=8)
def _quantiles(of: Distribution, count: int) -> Tensor:
    return of.quantile((torch.arange(count, dtype=torch.float64) + 0.5) / count)


@lru_cache(maxsize=8)
def _sample(of: Distribution, shape: tuple[int, ...], seed: int) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return of.quantile(uniform.clamp(2.0**-54, 1 - 2.0**-53)).float()


def _laplace(p: Tensor) -> Tensor:
    centred = p - 0.5
    return -centred.sign() * torch.log1p(-2 * centred.abs()) / math.sqrt(2)


def _student(freedom: int) -> Callable[[Tensor], Tensor]:
    def quantile(p: Tensor) -> Tensor:
        from scipy.special import stdtrit

        return torch.from_numpy(stdtrit(freedom, p.numpy())) * math.sqrt((freedom - 2) / freedom)

    return quantile


NORMAL = Distribution("normal", "Gaussian", torch.special.ndtri)
LAPLACE = Distribution("laplace", "Laplace", _laplace)
UNIFORM = Distribution("uniform", "uniform", lambda p: (2 * p - 1) * math.sqrt(3))


@cache
def student(freedom: int) -> Distribution:
    """Return Student's t with ``freedom`` degrees of freedom (3 or more: with fewer there is no variance)."""
    if freedom < 3:
        raise InputError(f"student{freedom}: expected 3 or more degrees of freedom; fewer have no variance")
    return Distribution(f"student{freedom}", f"Student-t, {freedom} d.o.f.", _student(freedom))


#: what `narrowcast formats` judges by: as weights are, and twice heavier tails
USUAL = (NORMAL, LAPLACE, student(5))


def distribution(name: str) -> Distribution:
    """Return the distribution called ``normal``, ``laplace``, ``uniform`` or ``studentN``."""
    known = {d.name: d for d in (NORMAL, LAPLACE, UNIFORM)}
    found = re.fullmatch(r"student(\d+)", name)
    if found is not None:
        return student(int(found[1]))
    if name not in known:
        raise InputError(f"unknown distribution {name!r}: expected {', '.join(known)} or studentN, e.g. student5")
    return known[name]
