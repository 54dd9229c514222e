"""What each operand of each layer loses: SQNR, underflow and saturation, measured on one training step."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.metrics import next_token_loss
from narrowcast.nn import Linear, operands
from narrowcast.quantize import Cast


@dataclass(frozen=True)
class OperandLoss:
    """What one operand of one layer loses in its cast.

    Attributes:
        site, operand: the layer's name, and which of its six operands.
        sqnr_db: 10 log10(sum x^2 / sum (x - q)^2); None where the cast is exact.
        underflow: share of the non-zero source values that became zero.
        saturate: share of the source values that were cut to the largest magnitude of their tile and lost more by it
            than rounding can take at the top of the range (half a step; a whole one if rounded stochastically).
    """

    site: str
    operand: str
    sqnr_db: float | None
    underflow: float
    saturate: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def operand_loss(site: str, label: str, source: Tensor, result: Tensor, cast: Cast) -> OperandLoss:
    """Return what ``result = cast(source)`` lost; both float32 of one shape."""
    signal, error = source.double().square().sum(), (source.double() - result.double()).square().sum()
    exact = float(error) == 0.0 or float(signal) == 0.0
    nonzero = source != 0
    under = float((nonzero & (result == 0)).sum()) / max(1, int(nonzero.sum()))
    # A value rounds by at most half a step (a whole one if stochastically): what lost more was cut.
    most = 1.0 if cast.rounding.random else 0.5
    step = 2.0 ** (cast.format.top_exponent - cast.format.precision) / cast.format.max
    cut = source.abs() > result.abs() * (1 + most * step) * (1 + 1e-6)
    top = result.abs() >= _largest(result, cast)
    over = float((cut & top & nonzero).sum()) / max(1, source.numel())
    return OperandLoss(site, label, None if exact else 10 * math.log10(float(signal / error)), under, over)


def _largest(result: Tensor, cast: Cast) -> Tensor:
    """Return, for each element, the largest magnitude in its tile after the cast: where saturation would put it."""
    padded = cast.tile.padded(result.abs()) if cast.tile.pad else result.abs()
    blocks, inside = cast.tile.blocks(padded)
    spread = blocks.amax(inside, keepdim=True).expand(blocks.shape).reshape(padded.shape)
    return spread[tuple(slice(0, n) for n in result.shape)]


def probe(model: nn.Module, tokens: Tensor) -> list[OperandLoss]:
    """Run one forward and backward pass of a converted ``model`` on ``tokens`` and measure every operand."""
    captured: dict[str, dict[str, Tensor]] = {}

    def forward(layer: Linear, args: tuple[Any, ...], output: Tensor) -> None:
        captured.setdefault(layer.site, {})["x"] = args[0].detach().reshape(-1, layer.in_features).float()

    def backward(layer: Linear, grad_in: Any, grad_out: tuple[Tensor, ...]) -> None:
        captured[layer.site]["g"] = grad_out[0].detach().reshape(-1, layer.out_features).float()

    linears = [m for m in model.modules() if isinstance(m, Linear)]
    state = [(b, b.clone()) for m in linears for b in m.buffers()]
    handles = [m.register_forward_hook(forward) for m in linears]  # type: ignore[arg-type]
    handles += [m.register_full_backward_hook(backward) for m in linears]  # type: ignore[arg-type]
    try:
        next_token_loss(model, tokens).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in state:
                buffer.copy_(before)
    return [loss for m in linears for loss in _losses(m, captured[m.site])]


@torch.no_grad()
def _losses(layer: Linear, seen: dict[str, Tensor]) -> list[OperandLoss]:
    found = operands(layer, seen["x"], layer.weight.detach(), seen["g"])
    return [operand_loss(layer.site, label, o.source, o.result, o.cast) for label, o in found.items()]
