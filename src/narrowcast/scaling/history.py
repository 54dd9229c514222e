"""Delayed scaling: the scale of this step comes from the maxima of earlier ones.

The history is a float32 vector. Slot 0 gathers the maximum of the step under way (by max, so that recomputing a
forward pass for activation checkpointing changes nothing); the scale comes from the finished slots. While those are
empty the current maximum is used. Source: Micikevicius et al. 2022; TransformerEngine's DelayedScaling.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError


@dataclass(frozen=True)
class Delayed:
    """A history of ``length`` finished steps, of which the largest maximum counts."""

    length: int = 16

    def new(self, device: torch.device | str | None = None) -> Tensor:
        """Return an empty history: float32 ``[length + 1]``."""
        return torch.zeros(self.length + 1, device=device)

    def amax(self, history: Tensor, current: Tensor) -> Tensor:
        """Record ``current`` (0-d) in slot 0, in place, and return the maximum to scale by.

        A non-finite current maximum is returned as it is (it poisons the tensor now) and not recorded.
        """
        finite = current.isfinite()
        history[0].copy_(torch.where(finite, torch.maximum(history[0], current), history[0]))
        past = history[1:].amax()
        return torch.where(finite & (past > 0), past, current)

    def __str__(self) -> str:
        return f"delayed{self.length}"

    @staticmethod
    def parse(text: str) -> "Delayed":
        """Parse ``delayedN``."""
        found = re.fullmatch(r"delayed([1-9]\d*)", text)
        if found is None:
            raise InputError(f"unknown fp32 scale rule {text!r}: expected delayedN, e.g. delayed16, or headroomN")
        return Delayed(int(found[1]))


def advance(history: Tensor) -> None:
    """Close the step under way, in place: ``history`` is ``[..., length + 1]``."""
    history.copy_(torch.cat([torch.zeros_like(history[..., :1]), history[..., :-1]], dim=-1))
