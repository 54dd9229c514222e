"""What a language model lost: its predictions before and after, on the same tokens."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.metrics import same_top


@dataclass(frozen=True)
class Judgement:
    """Two models on one text.

    Attributes:
        tokens: tokens that were predicted.
        before, after: mean loss in nats per token.
        divergence: mean KL divergence of the predictions, nats.
        agreement: share of tokens whose likeliest successor is the same.
    """

    tokens: int
    before: float
    after: float
    divergence: float
    agreement: float

    @property
    def finite(self) -> bool:
        """Whether both models predicted something."""
        return all(math.isfinite(value) for value in (self.before, self.after, self.divergence))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Judge:
    """Takes in the outputs of two models, batch by batch."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        self._silent = False

    def add(self, tokens: Tensor, before: Any, after: Any) -> None:
        """Take in one batch: token ids ``[batch, length]`` and what both models answer (with ``logits``)."""
        logits = [getattr(output, "logits", None) for output in (before, after)]
        if any(x is None or x.shape[:2] != tokens.shape for x in logits) or tokens.shape[1] < 2:
            self._silent = True  # no language model
            return
        # a row at a time: with a large vocabulary the temporaries of a batch are larger than a block
        for row, one, other in zip(tokens, before.logits, after.logits, strict=True):
            found = _compared(row[1:], one[:-1], other[:-1])
            self._sums = [total + value for total, value in zip(self._sums, found, strict=True)]

    @property
    def result(self) -> Judgement | None:
        """What was found; None without a batch, or where the models are no language models."""
        tokens, *sums = self._sums
        return None if self._silent or not tokens else Judgement(int(tokens), *(s / tokens for s in sums))


def _compared(target: Tensor, before: Tensor, after: Tensor) -> tuple[float, ...]:
    """Return tokens, both summed losses, summed divergence and agreements of one row's logits ``[length, vocab]``."""
    p, q = (torch.log_softmax(x.float(), -1) for x in (before, after))
    losses = [float(F.nll_loss(x, target.to(x.device), reduction="sum")) for x in (p, q)]
    divergence = (p.exp() * (p - q)).sum()  # in float32: a row of a large vocabulary is as large as a block
    return float(target.numel()), *losses, float(divergence), float(same_top(p, q).sum())
