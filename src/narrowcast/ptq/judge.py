"""What a language model lost: its predictions before and after, on the same tokens."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from narrowcast.metrics import window_figures


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
        for row, one, other in zip(tokens, before.logits, after.logits, strict=True):
            of_one = window_figures(row[1:], one[:-1])
            found = window_figures(row[1:], other[:-1], one[:-1])
            more = (found.tokens, of_one.loss, found.loss, found.divergence, found.agreed)
            self._sums = [total + value for total, value in zip(self._sums, more, strict=True)]

    @property
    def result(self) -> Judgement | None:
        """What was found; None without a batch, or where the models are no language models."""
        tokens, *sums = self._sums
        return None if self._silent or not tokens else Judgement(int(tokens), *(s / tokens for s in sums))
