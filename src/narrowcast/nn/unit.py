"""Weights of unit variance, so that FP8 needs no scales (Narayan et al. 2025, munit Scaling)."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from narrowcast.nn.linear import Linear


@dataclass(frozen=True)
class UnitVariance:
    """Every converted layer multiplies its three products by ``1 / sqrt(fan_in)``; its weight holds the inverse.

    A layer drawn with that deviation, as usual, then has weights of deviation 1, and gives what it gave before. The
    same step of an Adam-like optimizer in these weights is ``sqrt(fan_in)`` times larger (abc-symmetry: a multiplier,
    an initial deviation and a rate trade against one another); the rate falls with ``sqrt(fan_in)`` from ``base`` on,
    as the method's transfer rule asks.

    Attributes:
        base: the width at which a learning rate is tuned: there nothing but the form of the weights changes. None for
            the model's own, the fewest inputs of a converted layer: a rate is then what it is under other recipes.
    """

    base: int | None = None

    def alpha(self, fan_in: int) -> float:
        """Return what multiplies the products of a layer with ``fan_in`` inputs."""
        return 1.0 / math.sqrt(fan_in)

    def rate(self, fan_in: int, base: int) -> float:
        """Return what multiplies the learning rate (and divides the decay) of such a layer's weight."""
        return base / math.sqrt(fan_in)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Rewrite every converted layer of ``model`` in place."""
        for layer in model.modules():
            if isinstance(layer, Linear):
                layer.alpha = self.alpha(layer.in_features)
                layer.weight.div_(layer.alpha)

    def rates(self, model: nn.Module) -> dict[int, float]:
        """Return `rate` by the ``id`` of each converted layer's weight."""
        layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
        base = self.base or min((layer.in_features for layer in layers), default=1)
        return {id(layer.weight): self.rate(layer.in_features, base) for layer in layers}

    def __str__(self) -> str:
        width = f"width {self.base}" if self.base else "the model's width"
        return f"weights of unit variance, products times 1/sqrt(fan_in), rates from {width}"
