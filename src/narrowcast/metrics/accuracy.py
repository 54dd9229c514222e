"""Accuracy of a classifier."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of right answers in percent, in evaluation mode."""
    training = model.training
    model.eval()
    right = total = 0
    for x, labels in batches:
        right += int((model(x).argmax(-1) == labels).sum())
        total += len(labels)
    model.train(training)
    return 100 * right / total
