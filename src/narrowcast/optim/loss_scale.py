"""Dynamic loss scaling: keep small gradients above float16's underflow by multiplying the loss.

The loss is multiplied by a scale S before the backward pass and every weight gradient by 1/S after it, in float32,
before clipping, decay and update. A step whose gradients overflow is skipped and S backs off; after ``interval`` good
steps in a row S grows. With powers of two no bit of a gradient changes but for under- and overflow.

Source: Micikevicius et al. 2017, "Mixed Precision Training", section 3.2; the state machine, and the defaults, are
those of `torch.amp.GradScaler`.
"""

from collections.abc import Iterable

import torch
from torch import nn

from narrowcast.errors import CheckFailed


class LossScaler:
    """The running state of dynamic loss scaling.

    Attributes:
        scale: what the loss is multiplied by now; changes in `update` only, never between micro-batches.
        good: steps without overflow since the scale last changed.
        skipped: steps skipped so far.
    """

    def __init__(
        self, initial: float = 65536.0, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        self.growth, self.backoff, self.interval = growth, backoff, interval
        self.scale, self.good, self.skipped = initial, 0, 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients by the scale, in place; return whether all of them are finite."""
        finite = True
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(1.0 / self.scale)
                finite = finite and bool(p.grad.isfinite().all())
        return finite

    def update(self, finite: bool) -> None:
        """Advance after a step: back off where a gradient overflowed, grow after enough good steps.

        Raises CheckFailed at an overflow with the scale at 1 or below: the scale is not what overflows then.
        """
        if finite:
            self.good += 1
            if self.good == self.interval:
                self.scale, self.good = self.scale * self.growth, 0
            return
        if self.scale <= 1.0:
            raise CheckFailed(f"gradients overflow even at loss scale {self.scale:g}; the run diverges: lower --lr")
        self.scale, self.good, self.skipped = self.scale * self.backoff, 0, self.skipped + 1

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must hold."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from ``state``."""
        self.scale, self.good, self.skipped = float(state["scale"]), int(state["good"]), int(state["skipped"])
