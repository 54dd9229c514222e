"""Learned rounding: choose, for every weight, the grid value below or above, so that the layer's outputs change least.

Each weight starts at its own place between its two neighbours on the grid (which may lie at different distances: the
step is the element's own) and moves by gradient descent on ``tr(d H d^T)`` under a penalty that pushes it to one.
Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", with H for sampled inputs
(sheet 16).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.ptq.gptq import Solution, output_error
from narrowcast.quantize import Settled

_STRETCH, _OFFSET = 1.2, -0.1  # the rectified sigmoid reaches 0 and 1 at finite arguments (Nagel et al., eq. 23)


@dataclass(frozen=True)
class Learned:
    """How rounding is learned.

    Attributes:
        steps: of Adam.
        rate: its step size.
        penalty: weight of the push to 0 or 1, relative to the error of rounding to nearest.
    """

    steps: int = 200
    rate: float = 0.05
    penalty: float = 0.5

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and self.rate > 0 and self.penalty >= 0):
            raise InputError("learned rounding: expected steps >= 1, rate > 0 and penalty >= 0")

    def solve(self, weight: Tensor, hessian: Tensor, settled: Settled) -> Solution:
        """Return the better of what was learned and rounding to nearest, by the outputs' error."""
        into, back = settled.factors()
        w, nearest = weight.float(), settled.apply(weight)
        low, high = settled.cast.format.neighbours(settled.enter(w, into))
        low, high = settled.leave(low, back), settled.leave(high, back)
        choice = self._learn(w, hessian.float(), low, high, output_error(w, nearest, hessian))
        values = torch.where(choice, high, low)
        inside = high > low
        values = torch.where(inside & values.isfinite(), values, nearest)
        if output_error(w, values, hessian) >= output_error(w, nearest, hessian):
            return Solution(settled.quantize(w), nearest, 0.0, "learned rounding found nothing better than nearest")
        return Solution(settled.quantize(values), settled.apply(values), 0.0)

    def _learn(self, w: Tensor, h: Tensor, low: Tensor, high: Tensor, plain: float) -> Tensor:
        """Return (bool) which weights go up."""
        gap = torch.where(low.isfinite() & high.isfinite(), high - low, 0.0)
        low = torch.where(low.isfinite(), low, w)
        share = torch.where(gap > 0, (w - low) / gap.clamp_min(1e-30), 0.5).clamp(0.01, 0.99)
        h = h / ((w @ h) * w).sum().clamp_min(1e-30)  # the error is relative to the outputs' energy
        place = torch.logit((share - _OFFSET) / _STRETCH).requires_grad_()
        optimizer = torch.optim.Adam([place], lr=self.rate)
        with torch.enable_grad():
            for step in range(self.steps):
                up = (torch.sigmoid(place) * _STRETCH + _OFFSET).clamp(0, 1)
                d = low + up * gap - w
                sharpness = 20 - 18 * step / self.steps  # from lenient to strict (Nagel et al., section 4)
                push = (1 - (2 * up - 1).abs() ** sharpness).mean() if step > self.steps // 5 else 0.0
                loss = ((d @ h) * d).sum() / max(plain, 1e-30) + self.penalty * push
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return (torch.sigmoid(place.detach()) * _STRETCH + _OFFSET) >= 0.5
