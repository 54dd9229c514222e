"""Next-token loss and what is derived from it."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats (float32, 0-d) of predicting ``tokens[:, 1:]``.

    Args:
        model: a Hugging Face causal language model.
        tokens: int64 ``[batch, context + 1]``.
    """
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def losses_by_row(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of each row of ``tokens [batch, context + 1]``, float64 ``[batch]``."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.double().mT, tokens[:, 1:], reduction="none")
    return losses.mean(1)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """Return the loss per token in nats over ``batches`` of equal context, in evaluation mode."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for tokens in batches:
        predicted = tokens.shape[0] * (tokens.shape[1] - 1)
        total += float(next_token_loss(model, tokens)) * predicted
        count += predicted
    model.train(training)
    return total / count


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, tokens: int, size: int) -> float:
    """Return the code length in bits per byte of a text of ``size`` bytes and ``tokens`` tokens."""
    return loss * tokens / (math.log(2) * size)
