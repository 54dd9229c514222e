"""What each cast does to the tensors of a trained model: error, underflow and saturation, per layer and operand.

One probe batch runs forward and backward; the input, weight and output gradient of every converted layer are caught
and cast once more, exactly as the layer casts them. `loss` defines what is measured.

Where a gemm rotates its operands, everything is measured in the rotated basis, in which the cast works.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.loss import measure
from narrowcast.errors import InputError
from narrowcast.metrics import next_token_loss
from narrowcast.nn import OPERANDS, Linear, Operand, operands
from narrowcast.nn.spec import PAIRS
from narrowcast.quantize import Cast


@dataclass(frozen=True)
class OperandLoss:
    """What one operand of one layer loses in its cast; `loss` defines the three numbers.

    Attributes:
        site, operand: the layer's name, and which of its six operands.
        sqnr_db: in decibels; None where the cast is exact, or its result is not finite.
        underflow, saturate: shares between 0 and 1.
    """

    site: str
    operand: str
    sqnr_db: float | None
    underflow: float
    saturate: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def operand_loss(
    site: str, label: str, source: Tensor, result: Tensor, cast: Cast, history: Tensor | None = None
) -> OperandLoss:
    """Return what ``result``, which ``cast`` made of ``source``, lost.

    Args:
        site, label: the layer's name, and which operand.
        source, result: float32 ``[rows, K]``, padded and rotated as the cast saw and left them.
        cast: the cast.
        history: amax history of a delayed scale as it was when the cast ran; it is left as it is.
    """
    found = measure(source, result, cast, history)
    return OperandLoss(site, label, found.sqnr_db, found.underflow, found.saturate)


def probe(model: nn.Module, tokens: Tensor, loss_scale: float = 1.0) -> list[OperandLoss]:
    """Run one forward and backward pass of a converted ``model`` and measure every operand of every layer.

    The model is left as it was: weights, gradients, amax histories and random steps.

    Args:
        model: a converted causal language model.
        tokens: int64 ``[batch, context + 1]``.
        loss_scale: what training multiplies its loss by: it decides which narrow gradients underflow.
    """
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    caught: dict[Linear, dict[str, Tensor]] = {layer: {} for layer in linears}
    with _undone(model), _watching(caught):
        (next_token_loss(model, tokens) * loss_scale).backward()
    return [loss for layer, seen in caught.items() for loss in _losses(layer, seen)]


@torch.no_grad()
def _losses(layer: Linear, seen: dict[str, Tensor]) -> list[OperandLoss]:
    if "x" not in seen or "g" not in seen:
        raise InputError(f"layer {layer.site!r}: the probe batch did not reach it, forward and backward")
    cast_operands = operands(layer, seen["x"], layer.weight.detach(), seen["g"])
    found = {label: _loss(layer, label, cast_operands) for label in OPERANDS}
    return list(found.values())


def _loss(layer: Linear, label: str, cast_operands: dict[str, Operand]) -> OperandLoss:
    """Return the loss of one operand; plainly reused codes are those of the first cast, in its own orientation."""
    operand, first = cast_operands[label], PAIRS[label[-1]][0]
    made_at = first if operand.reused and operand.cast == cast_operands[first].cast else label
    of = cast_operands[made_at]
    history = None
    if layer.history is not None and of.cast.scale.delayed is not None:
        history = layer.history[OPERANDS.index(made_at), : of.cast.scale.delayed.length + 1]
    return operand_loss(layer.site, label, of.source, of.result, of.cast, history)


@contextmanager
def _watching(caught: dict[Linear, dict[str, Tensor]]) -> Iterator[None]:
    """Note each layer's input and output gradient; of a layer called several times, those of one call."""

    def forward_hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, Linear)
        seen = caught[layer] = {"x": inputs[0].detach().reshape(-1, layer.in_features).float()}

        def note(gradient: Tensor) -> None:
            seen["g"] = gradient.detach().reshape(-1, gradient.shape[-1]).float()

        if output.requires_grad:
            output.register_hook(note)

    handles = [layer.register_forward_hook(forward_hook) for layer in caught]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Put gradients and buffers (steps, histories) back afterwards."""
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
