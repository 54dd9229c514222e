"""Rank correlation."""

import torch
from torch import Tensor

from narrowcast.errors import InputError


def spearman(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Spearman's rank correlation of ``a`` and ``b`` ``[n]``; ties share the mean of their ranks; float64.

    Args:
        a, b: the figures.
        weights: how often each pair counts, ``[..., n]``, whole numbers; one correlation for each row of it, what the
            pairs written out so many times would give. NaN where either side is all alike.
    """
    if a.shape != b.shape or a.dim() != 1 or len(a) < 2:
        raise InputError(f"spearman: expected two rows of at least two figures, found {list(a.shape)}, {list(b.shape)}")
    w = (torch.ones(len(a)) if weights is None else weights).double().cpu()
    x, y = _ranks(a.double().cpu(), w), _ranks(b.double().cpu(), w)
    total = w.sum(-1, keepdim=True)
    x, y = (z - (w * z).sum(-1, keepdim=True) / total for z in (x, y))
    return (w * x * y).sum(-1) / ((w * x * x).sum(-1) * (w * y * y).sum(-1)).sqrt()


def _ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean rank of each value where value i occurs ``weights[..., i]`` times."""
    _, place = torch.unique(values, return_inverse=True)
    shape = (*weights.shape[:-1], int(place.max()) + 1)
    group = torch.zeros(shape, dtype=torch.float64).index_add_(-1, place, weights)
    return (group.cumsum(-1) - group + (group + 1) / 2)[..., place]
