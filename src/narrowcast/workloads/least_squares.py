"""Levenberg and Marquardt's method for small dense least squares: thousands of equations, about a thousand unknowns.

    (J'J + damping * diag(weight)) step = -J' residual

``weight`` tells how dear a change of each unknown is; the damping falls where a step succeeds and grows where it does
not. J'J is formed and factored by Cholesky: the squared condition costs single steps accuracy, not the limit.
Source: Nocedal and Wright, "Numerical Optimization", 2nd ed., 10.3; Marquardt 1963 (the running maximum as weight).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SHRINK, _GROW, _TRIES = 0.2, 4.0, 15
Model = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fit:
    """What came of it: the unknowns [n], the root mean square of the residual, the steps taken."""

    unknowns: Tensor
    rms: float
    steps: int


def levenberg_marquardt(
    model: Model, start: Tensor, target: Tensor, steps: int, goal: float = 0.0, weight: Tensor | None = None
) -> Fit:
    """Minimize ``|model(v) - target|^2`` from ``start`` [n], in its dtype.

    Args:
        model: ``(v, whether the Jacobian is wanted) -> (values [m], Jacobian [m, n] or anything)``.
        start, target: [n] and [m].
        steps: most steps; fewer where `goal` is reached or no damping finds an improvement.
        goal: root mean square at which to stop.
        weight: [n], positive; None for the running maximum of the diagonal of J'J.
    """
    v, rows = start, len(target)
    floor = torch.finfo(start.dtype).eps
    values, jacobian = model(v, True)
    residual = values - target
    cost, largest = float(residual @ residual), torch.zeros_like(v)
    damping, taken = (1e-3 if weight is None else 1e-2), 0
    while taken < steps and math.sqrt(cost / rows) > goal:
        gram, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        largest = torch.maximum(largest, gram.diagonal())
        for _ in range(_TRIES):
            trial = _step(gram, gradient, damping * (largest if weight is None else weight))
            if trial is not None:
                ahead = model(v + trial, False)[0] - target
                if (below := float(ahead @ ahead)) < cost:
                    break
            damping = max(_GROW * damping, floor)
        else:
            break
        v, taken = v + trial, taken + 1
        damping = max(_SHRINK * damping, 1e-2 * floor)
        values, jacobian = model(v, True)
        residual, cost = values - target, below
    return Fit(v, math.sqrt(cost / rows), taken)


def _step(gram: Tensor, gradient: Tensor, diagonal: Tensor) -> Tensor | None:
    """Return the damped step, or None where the damped matrix is not numerically positive definite."""
    factor, info = torch.linalg.cholesky_ex(gram + torch.diag(diagonal))
    if int(info):
        return None
    return -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
