"""Many small networks of one shape, computed at once: a sweep over hundreds of runs in the time of a few."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StackedMlp(nn.Module):
    """``[*stack]`` independent multilayer perceptrons with ReLU between layers; plain SGD trains each by itself.

    Args:
        stack: how many, in any number of dimensions.
        widths: inputs, hidden widths, outputs.
        seeds: one per entry of the last dimension of the stack: networks that share it start alike.
    """

    def __init__(self, stack: Sequence[int], widths: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__()
        drawn = [_draw(widths, seed) for seed in seeds]
        layers = [torch.stack([weights[i] for weights in drawn]) for i in range(len(widths) - 1)]
        shape = (*stack, -1, -1)
        self.weights = nn.ParameterList(layer.expand(shape).clone() for layer in layers)
        self.biases = nn.ParameterList(layer.new_zeros(*stack, 1, layer.shape[-1]) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[*stack, B, outputs]`` of ``x [B, inputs]``, or of one batch per network ``[*stack, B, inputs]``."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            x = x.relu() if i < last else x
        return x


def _draw(widths: Sequence[int], seed: int) -> list[Tensor]:
    """Return He-normal weights ``[inputs, outputs]`` of each layer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(a, b, generator=generator) * (2 / a) ** 0.5 for a, b in itertools.pairwise(widths)]
