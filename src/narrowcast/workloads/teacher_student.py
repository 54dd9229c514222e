"""Regression whose least squares are zero: a random network, the teacher, labels the data that its student learns.

All numbers (inputs, teacher, the student's start) are drawn in float64 and rounded to float32, so that a float32 and
a float64 student start from the same numbers; each dtype computes its own targets from them, so that the teacher's
weights are an exact solution in both.
Source: Hrycej, Bermeitinger and Handschuh (study 66); sizes and scales are ours.
"""

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from narrowcast.errors import InputError


@dataclass(frozen=True)
class TeacherStudent:
    """A task of this kind.

    Attributes:
        widths: of input, hidden layers and output.
        scale: standard deviation of the teacher's pre-activations, about; 1 is moderately nonlinear, 5 saturates.
        ratio: equations (samples times outputs) per parameter, above 1.
        seed: decides everything.
    """

    widths: tuple[int, ...]
    scale: float = 1.0
    ratio: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.widths) < 3 or min(self.widths) < 1:
            raise InputError(f"widths are {self.widths}; expected input, at least one hidden layer, output")
        if self.ratio <= 1:
            raise InputError(f"ratio is {self.ratio}; expected more than 1 equation per parameter")

    @property
    def parameters(self) -> int:
        """Count of weights and biases."""
        return sum(prod(shape) for shape in self._shapes())

    @property
    def samples(self) -> int:
        """Count of training samples."""
        return round(self.ratio * self.parameters / self.widths[-1])

    def inputs(self) -> Tensor:
        """Return inputs [samples, widths[0]], standard normal."""
        return self._draw(0, (self.samples, self.widths[0]))

    def teacher(self) -> list[Tensor]:
        """Return the teacher's weights [fan-in, fan-out] and biases [fan-out], in turn; the last layer's scale is 1."""
        scales = [self.scale] * (len(self.widths) - 2) + [1.0]
        return self._weights(1, lambda fan_in, fan_out, layer: scales[layer] / sqrt(fan_in))

    def start(self) -> list[Tensor]:
        """Return the student's initial weights: Glorot and Bengio's, biases zero."""
        found = self._weights(2, lambda fan_in, fan_out, layer: sqrt(2 / (fan_in + fan_out)))
        return [w if w.dim() == 2 else torch.zeros_like(w) for w in found]

    def targets(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the teacher's answers [samples, widths[-1]], computed in ``dtype``."""
        return network([w.to(dtype) for w in self.teacher()], self.inputs().to(dtype))

    def _shapes(self) -> list[tuple[int, ...]]:
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return [shape for pair in pairs for shape in (pair, pair[1:])]

    def _weights(self, stream: int, deviation: object) -> list[Tensor]:
        weights: list[Tensor] = []
        for layer, pair in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            spread = deviation(*pair, layer)  # type: ignore[operator]
            weights += [
                self._draw(10 * stream + 2 * layer, pair) * spread,
                self._draw(10 * stream + 2 * layer + 1, pair[1:]) * spread,
            ]
        return [w.float().double() for w in weights]

    def _draw(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + stream)
        return torch.randn(shape, generator=generator, dtype=torch.float64).float().double()


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return the output [..., out] of a tanh network with a linear last layer; leading axes of weights broadcast."""
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = torch.tanh(x @ w + b[..., None, :])
    return x @ weights[-2] + weights[-1][..., None, :]
