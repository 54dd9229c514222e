"""When a loss stops being finite: which tensor went first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.metrics import next_token_loss


def _first_bad(value: Any) -> bool:
    tensors = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors)


@contextmanager
def _watch(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Note the first module whose output is not finite; modules finish inner ones first, in order of execution."""

    def hook(name: str) -> Callable[..., None]:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and _first_bad(output):
                found.append(f"the output of {name or 'the model'} ({type(module).__name__})")

        return check

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def name_first_non_finite(model: nn.Module, tokens: Tensor) -> str:
    """Return the first tensor of ``model`` that is not finite on ``tokens``: a weight, an output, or a gradient."""
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            return f"weight {name}"
    found: list[str] = []
    with torch.no_grad(), _watch(model, found):
        loss = next_token_loss(model, tokens)
    if found:
        return found[0]
    if not loss.isfinite():
        return "the loss itself"
    for name, p in reversed(list(model.named_parameters())):  # the backward pass reaches the last layer first
        if p.grad is not None and not p.grad.isfinite().all():
            return f"the gradient of {name}"
    return "a tensor that is finite again when the batch is repeated"
