"""Dynamic loss scaling: the state machine of torch.amp.GradScaler, with its state in the open.

Powers of two, so that scaling changes no bit of a gradient but for under- and overflow.
Source: Micikevicius et al. 2017, "Mixed Precision Training", section 3.2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from narrowcast.errors import CheckFailed
from narrowcast.recipes.recipe import LossScale


@dataclass
class LossScaler:
    """The running state of a `LossScale`.

    Attributes:
        settings: its constants.
        scale: what the loss is multiplied by now.
        good: steps without overflow since the scale last changed.
        skipped: steps skipped so far.
    """

    settings: LossScale
    scale: float = 0.0
    good: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.scale = self.scale or self.settings.initial

    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients by the scale, in place; return whether all of them are finite."""
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1.0 / self.scale)
        return all(bool(g.isfinite().all()) for g in grads)

    def update(self, finite: bool) -> None:
        """Advance after a step: back off where a gradient overflowed, grow after enough good steps."""
        if finite:
            self.good += 1
            if self.good == self.settings.interval:
                self.scale, self.good = self.scale * self.settings.growth, 0
            return
        if self.scale <= 1.0:
            raise CheckFailed("gradients overflow even at loss scale 1: the run diverges; lower --lr")
        self.scale, self.good, self.skipped = self.scale * self.settings.backoff, 0, self.skipped + 1
