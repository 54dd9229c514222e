"""Nonlinear conjugate gradient with a line search, as a `torch.optim.Optimizer`.

Polak and Ribiere's direction, never negative (PR+), restarted along the gradient every ``restart`` steps and wherever
the direction does not descend. Everything is computed in the parameters' dtype; what a low precision costs shows as
a line search that finds no improvement (`finished`).
Source: Gilbert and Nocedal, "Global convergence properties of conjugate gradient methods", 1992.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.optim.line_search import VALUES, Point, Rule, search

_FIRST_STEP = 1e-2  # length of the first step in parameter space; the bracket grows from there


class ConjugateGradient(torch.optim.Optimizer):
    """Minimize a deterministic objective (a full batch) by conjugate directions.

    ``step(closure)`` takes one direction to the end of its line search; the closure clears the gradients, computes the
    loss, calls ``backward`` and returns the loss. The state is not saved: a resumed run starts along the gradient.

    Args:
        params: tensors of one dtype and device, in one group.
        restart: steps between restarts; None for the number of parameters.
        rule: what the line search compares (`VALUES`, `SLOPES` of `line_search`).
        limit: most evaluations per line search.

    Attributes:
        evaluations: how often the closure ran.
        finished: whether a line search along the negative gradient found no improvement. Further steps do nothing.
    """

    def __init__(
        self, params: Iterable[Tensor], restart: int | None = None, rule: Rule = VALUES, limit: int = 20
    ) -> None:
        super().__init__(params, {"restart": restart})
        if len(self.param_groups) != 1:
            raise InputError(f"ConjugateGradient: found {len(self.param_groups)} parameter groups, expected one")
        self._params: list[Tensor] = self.param_groups[0]["params"]
        if len(kinds := {(p.dtype, p.device) for p in self._params}) != 1:
            raise InputError(f"ConjugateGradient: found parameters of {len(kinds)} dtypes and devices, expected one")
        self._restart = restart or sum(p.numel() for p in self._params)
        self._rule, self._limit = rule, limit
        self._gradient: Tensor | None = None
        self._direction: Tensor | None = None
        self._here = Point(0.0, float("nan"), 0.0)
        self._since, self._reach = 0, 0.0
        self.evaluations, self.finished = 0, False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """Take one step and return the loss after it."""
        if self._gradient is None:
            value, self._gradient = self._evaluate(closure)
            self._here = Point(0.0, value, 0.0)
        if self.finished:
            return self._here.value
        while not self._along(closure, *self._choose(self._gradient)):
            if not self._since:  # not even along the negative gradient
                self.finished = True
                break
            self._since = 0  # the conjugate direction failed: once more along the gradient
        return self._here.value

    def _choose(self, gradient: Tensor) -> tuple[Tensor, float]:
        """Return the next direction and its slope."""
        if self._direction is not None and 0 < self._since < self._restart:
            slope = float(gradient @ self._direction)
            if slope < 0:
                return self._direction, slope
        self._since = 0
        return -gradient, -float(gradient @ gradient)

    def _along(self, closure: Callable[[], Any], direction: Tensor, slope: float) -> bool:
        """Search along ``direction``, move there and prepare the next one; False where nothing was found."""
        if not slope < 0:
            return False
        origin = torch.cat([p.flatten() for p in self._params])
        gradients: dict[float, Tensor] = {}

        def at(step: float) -> Point:
            self._write(origin + step * direction)
            value, gradients[step] = self._evaluate(closure)
            return Point(step, value, float(gradients[step] @ direction))

        start = Point(0.0, self._here.value, slope)
        guess = self._reach / -slope if self._reach else _FIRST_STEP / float(direction.norm())
        found = search(at, start, guess, self._rule, limit=self._limit)
        self._write(origin if found is None else origin + found.step * direction)
        if found is None:
            return False
        self._here, self._reach = found, found.step * -slope  # the next first-order change is taken to be the same
        self._conjugate(gradients[found.step], direction)
        return True

    def _conjugate(self, gradient: Tensor, direction: Tensor) -> None:
        before = self._gradient
        assert before is not None
        beta = max(0.0, float(gradient @ (gradient - before)) / float(before @ before))
        self._gradient, self._direction = gradient, beta * direction - gradient
        self._since += 1

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[float, Tensor]:
        self.evaluations += 1
        with torch.enable_grad():
            loss = closure()
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        missing = [i for i, p in enumerate(self._params) if p.grad is None]
        if missing:
            raise InputError(
                f"ConjugateGradient: parameter {missing[0]} has no gradient; the closure must call backward"
            )
        return value, torch.cat([p.grad.flatten() for p in self._params if p.grad is not None])

    def _write(self, flat: Tensor) -> None:
        for p, piece in zip(self._params, flat.split([p.numel() for p in self._params]), strict=True):
            p.copy_(piece.view_as(p))
