"""How far rounding the weights of a network moves its outputs: a first-order model, and the measurement.

A weight's relative error has a mean mu and a deviation sigma that the format and the rounding decide, for mantissas
that are uniform in their logarithm: truncation to M bits has mu = -0.72 * 2**-(M + 1) (it always shrinks), to nearest
mu = 0. To first order the output of L layers moves by

    error**2 = (L mu)**2 + sigma**2 * sum over layers of kappa**2

relative to its own size. The means of all layers add; the random parts add as squares, each amplified by its layer's
condition kappa**2 = sum (w x)**2 / sum (W x)**2: how much the terms of its sums cancel (a network whose later layers
neither amplify nor damp a relative error is assumed; ReLU passes a common factor).
Source: sheet 84, derived there and here; Li et al. 2018 announce such a model in their abstract.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError

_LN2 = math.log(2)
#: (mean, mean square) of the relative error in units of 2**-M, for log-uniform mantissas
_MOMENTS = {
    "toward-zero": (-1 / (4 * _LN2), 3 / (8 * _LN2) / 3),  # the error is uniform in [-1, 0] steps
    "nearest-even": (0.0, 3 / (8 * _LN2) / 12),  # in [-1/2, 1/2]
    "stochastic": (0.0, 3 / (8 * _LN2) / 6),  # mean of f (1 - f) over the fraction f
}


@dataclass(frozen=True)
class RelativeError:
    """Mean and deviation of a rounded number's relative error."""

    mean: float
    deviation: float


def relative_error(mantissa: int, rounding: str) -> RelativeError:
    """Return the relative error of rounding to ``mantissa`` bits (toward-zero, nearest-even or stochastic)."""
    if rounding not in _MOMENTS:
        raise InputError(f"no error model for rounding {rounding!r}; known: {', '.join(_MOMENTS)}")
    mean, square = _MOMENTS[rounding]
    step = 2.0**-mantissa
    return RelativeError(mean * step, math.sqrt(square - mean * mean) * step)


def conditions(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> list[float]:
    """Return kappa of each layer of a ReLU network (``[inputs, outputs]`` weights) on inputs ``x [B, inputs]``."""
    found = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        y = x @ weight + bias
        found.append(math.sqrt(float((x.square() @ weight.square()).sum() / y.square().sum())))
        x = y.relu() if i < len(weights) - 1 else y
    return found


def predicted(kappas: Sequence[float], error: RelativeError) -> float:
    """Return the relative error of the outputs that the model expects (see the module's docstring)."""
    return math.hypot(len(kappas) * error.mean, error.deviation * math.hypot(*kappas))


def measured(before: Tensor, after: Tensor) -> float:
    """Return the relative distance of two outputs."""
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))
