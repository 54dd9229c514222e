"""Bits and bytes: what a recipe stores, as hardware with its formats would store it.

This emulation itself holds everything in float32; these are not its bytes. Scales count everywhere.

- *weights*: converted layers by their forward weight cast; other parameters as bfloat16 (float32 without a recipe);
- *operands*: all six of every converted layer, each in the shape in which its gemm reads it;
- *optimizer*: master weights and AdamW's two moments, 12 bytes per parameter in float32, less where the recipe says so;
- *activations*: what autograd keeps from one real forward pass; see `activation_bytes`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.roofline import Layer
from narrowcast.metrics import next_token_loss
from narrowcast.nn import OPERANDS, Linear
from narrowcast.nn.spec import PAIRS
from narrowcast.ops import Reuse
from narrowcast.optim import state_bytes

_GRADIENT_AND_COPY = 4 + 2  # bytes per parameter that AdamW reads of gradients, and writes as a bfloat16 copy
_MEASURED = 1024  # tokens of a forward pass whose tensors are counted one by one: in float32, and nothing is freed


@dataclass(frozen=True)
class Footprint:
    """What one recipe stores for one model.

    Attributes:
        bits_weights: bits per element of the narrowed weights, scales counted.
        bits_operands: bits per element over the six operands, scales counted.
        model_bytes: narrowed weights as codes and scales, the rest in bfloat16 (float32 without a recipe).
        optimizer_bytes: master weights and both AdamW moments.
        activation_bytes: kept for the backward pass; see `activation_bytes`.
    """

    bits_weights: float
    bits_operands: float
    model_bytes: int
    optimizer_bytes: int
    activation_bytes: int


def optimizer_traffic(model: nn.Module, states: str | None) -> float:
    """Return the bytes that an AdamW step moves: gradients, master weights and moments read, and all but those written.

    ``states``: how the latter are kept, as `Recipe.optimizer`.
    """
    return 2 * state_bytes(model, states) + _GRADIENT_AND_COPY * sum(p.numel() for p in model.parameters())


def footprint(model: nn.Module, tokens: Tensor, states: str | None = None, unconverted: int = 32) -> Footprint:
    """Return the footprint of a converted ``model`` in one training step on ``tokens`` ``[batch, context + 1]``.

    Args:
        model: converted, or as it was.
        tokens: of one step.
        states: how the optimizer keeps master weights and moments, as `Recipe.optimizer`.
        unconverted: bits of a model's numbers where nothing is converted: 16 under autocast.
    """
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    wide = 16 if linears else unconverted
    narrow = {id(m.weight): m.spec.cast("fwd.w").bits_per_element(tuple(m.weight.shape)) for m in linears}
    bits = sum(p.numel() * narrow.get(id(p), wide) for p in model.parameters())
    elements = sum(m.weight.numel() for m in linears)
    weight_bits = sum(m.weight.numel() * narrow[id(m.weight)] for m in linears)
    rows = tokens.shape[0] * (tokens.shape[1] - 1)
    return Footprint(
        weight_bits / elements if linears else float(wide),
        _operand_bits(linears, rows) if linears else float(wide),
        round(bits / 8),
        round(state_bytes(model, states)),
        _activation_bytes(model, tokens, wide),
    )


def _activation_bytes(model: nn.Module, tokens: Tensor, wide: int) -> int:
    """Return `activation_bytes`, of large batches from some rows and twice as many: weights' codes count once."""
    few = max(1, _MEASURED // (tokens.shape[1] - 1))
    if len(tokens) <= 2 * few:
        return activation_bytes(model, tokens, wide)
    once, twice = (activation_bytes(model, tokens[:count], wide) for count in (few, 2 * few))
    return once + (twice - once) * (len(tokens) - few) // few


def _operand_bits(linears: list[Linear], tokens: int) -> float:
    """Return bits per element over the six operands of all layers, each weighted by its elements."""
    bits = elements = 0.0
    for m in linears:
        layer = Layer(m.out_features, m.in_features)
        for label in OPERANDS:
            operand = m.spec.operand(label)
            again = isinstance(operand, Reuse) and operand.then is None  # the first codes, laid out as they were
            shape = layer.shape(PAIRS[label[-1]][0] if again else label, tokens)
            bits += m.spec.cast(label).bits_per_element(shape) * shape[0] * shape[1]
            elements += shape[0] * shape[1]
    return bits / elements


def activation_bytes(model: nn.Module, tokens: Tensor, wide: int) -> int:
    """Return the bytes that a native implementation keeps between forward and backward.

    One real forward pass under `torch.autograd.graph.saved_tensors_hooks` counts every tensor that autograd keeps,
    each storage once, parameters, buffers and tokens left out, at ``wide`` bits per floating-point element. What a
    narrow layer keeps counts as its spec says (`LinearSpec.saved_bits`): its wide input, or codes and scales where
    the backward pass reuses them (once for all layers that cast the same input the same way), and reused weight codes;
    nothing of what the backward pass makes again (`LinearSpec.remade`).
    """
    kept: dict[object, tuple[Tensor, float]] = {}  # the tensors are held, so that no storage address comes twice
    own = {_address(t) for t in (*model.parameters(), *model.buffers(), tokens)}
    inside: list[Linear] = []

    def keep(key: object, t: Tensor, bits: float) -> None:
        kept[key] = t, max(bits, kept[key][1] if key in kept else 0.0)

    def pack(t: Tensor) -> Tensor:
        if not inside and _address(t) not in own:
            size = t.untyped_storage().nbytes() // t.element_size()
            keep(_address(t), t, size * (wide if t.is_floating_point() else t.element_size() * 8))
        return t

    def enter(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Linear)
        inside.append(layer)
        x, w, spec = args[0].detach(), layer.weight, layer.spec
        bits = spec.saved_bits("x", (x.numel() // layer.in_features, layer.in_features)) * x.numel()
        reused = isinstance(spec.operand("wgrad.x"), Reuse)
        keep((_address(x), spec.cast("fwd.x")) if reused else _address(x), x, bits)
        if isinstance(spec.operand("dgrad.w"), Reuse):
            keep(layer, w, spec.saved_bits("w", tuple(w.shape)) * w.numel())

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    linears = [m for m in model.modules() if isinstance(m, Linear)]
    handles = [m.register_forward_pre_hook(enter) for m in linears]
    handles += [m.register_forward_hook(leave) for m in linears]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            next_token_loss(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return round(sum(bits for _, bits in kept.values()) / 8)


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
