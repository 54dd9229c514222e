"""Fake quantization with the straight-through gradient, on any module that multiplies by its ``weight``.

The forward pass multiplies what the cast makes of the weight and of the input; the backward pass treats the cast as the
identity (Bengio, Leonard & Courville 2013). Weights are cast as the matrix ``[out, everything else]``, so a row is an
output channel. `finish` leaves the narrowed values in the place of the weights: what is trained is what is deployed.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from narrowcast.errors import InputError
from narrowcast.quantize import Cast

_KINDS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Plan:
    """What one layer's weight and input are cast to; None leaves it wide."""

    weight: Cast | None = None
    activation: Cast | None = None


def straight_through(x: Tensor, narrowed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``narrowed(x)`` whose gradient is that of ``x``; the dtype of ``x``."""
    with torch.no_grad():
        value = narrowed(x.detach()).to(x.dtype)
    return x + (value - x).detach()


class _Narrow(nn.Module):
    """A parametrization: the weight as its cast sees it."""

    def __init__(self, cast: Cast) -> None:
        super().__init__()
        self.cast = cast

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, lambda w: self.cast.apply(w.flatten(1), what="weight").view(w.shape))


def prepare(model: nn.Module, plans: dict[str, Plan]) -> dict[str, Plan]:
    """Make the layers of ``model`` see narrow numbers; return the plan of every layer.

    Args:
        model: changed in place.
        plans: glob pattern of layer names -> plan; the first that matches decides, layers that none matches stay wide.

    Raises InputError for a pattern that decides nothing.
    """
    decided: dict[str, Plan] = {}
    used: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, _KINDS):
            pattern = next((p for p in plans if fnmatch.fnmatch(name, p)), None)
            decided[name] = plans[pattern] if pattern else Plan()
            used |= {pattern} if pattern else set()
    if unused := [p for p in plans if p not in used]:
        raise InputError(f"pattern {unused[0]!r} decides no layer; the layers are {', '.join(decided)}")
    for name, plan in decided.items():
        _narrow(model.get_submodule(name), plan)
    return decided


def _narrow(module: nn.Module, plan: Plan) -> None:
    if plan.weight is not None:
        parametrize.register_parametrization(module, "weight", _Narrow(plan.weight))
    if plan.activation is not None:
        cast = plan.activation

        def see(module: nn.Module, args: Any) -> Any:
            x, *rest = args
            return (straight_through(x, lambda t: _of_input(cast, t)), *rest)

        module.register_forward_pre_hook(see)


def _of_input(cast: Cast, x: Tensor) -> Tensor:
    """Cast an input: a picture ``[N, C, H, W]`` sample by sample, so that a row is one sample."""
    flat = x.flatten(1) if x.dim() == 4 else x
    return cast.apply(flat, what="input").view(x.shape)


def finish(model: nn.Module) -> None:
    """Put the narrowed weights in the place of the trained ones; inputs go on being cast."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
