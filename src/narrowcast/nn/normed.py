"""RMSNorm and gated unit of a transformer block as one: ``down(silu(gate(n)) * up(n))`` with ``n = norm(x)``.

Nothing wide is written between norm, gemms and gate but what the gemms themselves put out: `passes` makes the codes of
both orientations where the tensor is made, also of the gradients. Gate and up are one layer of twice the outputs, so
where a scale is shared by a whole tensor, they share it. What is kept for the backward pass: x, 1/rms, the outputs of
gate and up, and codes of the normed x, of the product and of the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.backend import choose_both, passes
from narrowcast.errors import InputError
from narrowcast.nn.change import Change
from narrowcast.nn.context import Context, Gradients, in_dtype, own_precision
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import Plans, choices
from narrowcast.nn.native import _product as product
from narrowcast.nn.saved import codes_again, form_of, tensors_of
from narrowcast.nn.spec import OPERANDS, PAIRS, LinearSpec
from narrowcast.ops import Reuse, matmul, operand, split
from narrowcast.passes import How
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import advance

_PARTS = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Unit:
    """How the unit computes.

    Attributes:
        spec: the three gemms of each of its layers.
        eps: of the norm.
        plans: how the gemms run, none for emulation; then the passes are plain too.
        smooth: Smooth-SwiGLU (`passes.smooth_scale`).
    """

    spec: LinearSpec
    eps: float
    plans: Plans
    smooth: bool = False

    @property
    def passes(self) -> Any:
        """The module whose functions run."""
        return passes("native" if self.plans.any else "emulate")

    def casts(self, tensor: str) -> tuple[Cast, Cast | None]:
        """Return how x, w or g is cast, and its transpose; None for the same codes."""
        first, second = (self.spec.operand(label) for label in PAIRS[tensor])
        assert isinstance(first, Cast)
        return first, None if isinstance(second, Reuse) else second

    def product(self, name: str, a: QTensor, b: QTensor, dtype: torch.dtype, alpha: float = 1.0) -> Tensor:
        """Return ``alpha`` times gemm ``name`` of two operands, in ``dtype``."""
        plan = getattr(self.plans, name)
        a, b = operand(a), operand(b)
        if plan is not None:
            return product(a, b, self.spec, name, plan, alpha, dtype)
        gemm = getattr(self.spec, name)
        wide = [split(q) if gemm.accumulator.on_codes else replace(q, dtype=torch.float32).dequantize() for q in (a, b)]
        return in_dtype(matmul(wide[0], wide[1], gemm, alpha), dtype)

    def how(self, tensor: str, layer: Context, what: str) -> How:
        """Return what the pass over x, w or g of a layer is given besides casts: random bits, its history, its name."""
        first, second = (OPERANDS.index(label) for label in PAIRS[tensor])
        found: How = {"stream": layer.stream(first), "across_stream": layer.stream(second)}
        history, delayed = layer.history, self.casts(tensor)[0].scale.delayed
        if history is not None and delayed is not None:
            found["history"] = history[first, : delayed.length + 1]
        return found | {"what": f"layer {layer.site!r}, {what}"}


class _Normed(torch.autograd.Function):
    """The unit on ``x [..., width]``; weights ``[width]`` of the norm, ``[F, width]`` twice and ``[width, F]``.

    ``layers``: contexts of gate and down, whose random bits and histories are used (gate's for gate and up together)
    and whose factors multiply the products. A matrix is made of x in here, as in `nn.native`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        gate_weight: Tensor,
        up_weight: Tensor,
        down: Tensor,
        unit: Unit,
        out: torch.dtype,
        layers: tuple[Context, Context],
    ) -> Tensor:
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        run, cast_x, cast_w = unit.passes, unit.casts("x"), unit.casts("w")
        one, two = layers
        (xq, xt), inverse = run.rms_norm_both(x, norm, unit.eps, *cast_x, **unit.how("x", one, "normed x"))
        wq, wt = run.stacked_both(gate_weight, up_weight, *cast_w, **unit.how("w", one, "weights of gate and up"))
        both = unit.product("fwd", xq, wq, out, one.alpha)
        gate, up = both.chunk(2, dim=-1)
        scale = run.smooth_scale(up) if unit.smooth else None
        zq, zt = run.swiglu_both(gate, up, *cast_x, scale=scale, **unit.how("x", two, "gated product"))
        dq, dt = run.quantize_both(down, *cast_w, **unit.how("w", two, "weight"))
        y = unit.product("fwd", zq, dq, out, two.alpha)
        kept = (xt, zt, wt, dt)
        steps = [layer.step.clone() for layer in layers if layer.step is not None]
        ctx.save_for_backward(x, norm, inverse, both, scale, *steps, *(t for q in kept for t in tensors_of(q)))
        ctx.forms = [form_of(q) for q in kept]
        ctx.unit, ctx.types, ctx.layers, ctx.lead = unit, (gate_weight.dtype, down.dtype), layers, lead
        return (y if scale is None else in_dtype(y * scale, out)).view(*lead, y.shape[-1])

    @staticmethod
    @own_precision
    def backward(ctx: Any, g: Tensor) -> Gradients:
        saved = list(ctx.saved_tensors)  # what a star unpacks is a tuple to torch 2.11's compiler
        x, norm, inverse, both, scale = saved[:5]
        steps = [layer.step is not None for layer in ctx.layers]
        one, two = (layer.at(saved.pop(5)) if has else layer for layer, has in zip(ctx.layers, steps, strict=True))
        xt, zt, wt, dt = codes_again(saved[5:], ctx.forms)
        unit: Unit = ctx.unit
        run, cast = unit.passes, unit.casts("g")
        if scale is not None:
            g = (g.reshape(-1, g.shape[-1]) * scale).to(g.dtype)
        gq, gt = run.quantize_both(g, *cast, **unit.how("g", two, "gradient of the output"))
        dz = unit.product("dgrad", gq, dt, both.dtype, two.alpha)
        d_down = unit.product("wgrad", gt, zt, ctx.types[1], two.alpha)
        gate, up = both.chunk(2, dim=-1)
        hq, ht = run.swiglu_backward_both(
            dz, gate, up, *cast, scale=scale, **unit.how("g", one, "gradient of gate and up")
        )
        dn = unit.product("dgrad", hq, wt, x.dtype, one.alpha)
        d_gated = unit.product("wgrad", ht, xt, ctx.types[0], one.alpha)
        dx, d_norm = run.rms_norm_backward(dn, x, norm, inverse)
        for layer in ctx.layers:
            if layer.step is not None:
                layer.step.add_(1)
            if layer.history is not None:
                advance(layer.history)
        return dx.view(*ctx.lead, dx.shape[-1]), d_norm.to(norm.dtype), *d_gated.chunk(2), d_down, None, None, None


class Passing(nn.Module):
    """A norm whose work another module does: it keeps the weight under its name, and passes ``x`` on."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = source.weight, eps_of(source)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class NormedGate(nn.Module):
    """The gated unit, with the norm before it done here.

    The norm's weight multiplies in float32, before the result is rounded to the dtype of ``x``, as in
    `torch.nn.functional.rms_norm`.

    Attributes:
        unit: how it computes; settled anew where the weights move to another device.
        backend: ``auto``, ``emulate`` or ``native``.
    """

    def __init__(self, source: nn.Module, norm: Passing, unit: Unit, backend: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (getattr(source, part) for part in _PARTS)
        self.unit, self.backend = unit, backend
        self._norm = (norm,)  # in a tuple: its weight stays a parameter of the block alone

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "NormedGate":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.unit = replace(self.unit, plans=plans_of(self.gate_proj, self.backend))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output for the block's stream ``x`` ``[..., width]``, not yet normed."""
        kind = x.device.type
        out = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            layers = (self.gate_proj.context, self.down_proj.context)
            weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
            y: Tensor = _Normed.apply(x, self._norm[0].weight, *weights, self.unit, out, layers)  # type: ignore[no-untyped-call]
            return y

    def extra_repr(self) -> str:
        """Say how the norm is done."""
        return f"eps={self.unit.eps}, smooth={self.unit.smooth}, native={self.unit.plans.any}"


@dataclass(frozen=True)
class NormedGates(Change):
    """Join the norm and the gated unit of every block of a converted model (Llama's names) into a `NormedGate`.

    Attributes:
        norm, unit: names of the two modules within a block.
        smooth: Smooth-SwiGLU.
    """

    norm: str = "post_attention_layernorm"
    unit: str = "mlp"
    smooth: bool = False

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`; the block itself stays."""
        found = fed(module, self.norm, self.unit, _PARTS)
        if found is None:
            return None
        norm, unit, layers = found
        first = layers[0]
        why = unlike(layers) or against(first.spec) or _gate(unit) or other_block(module, norm)
        if not why and any(layer.bias is not None for layer in layers):
            why = "a layer has a bias"
        run = cast_run(first.spec)
        if not why and run and first.out_features % run:
            why = f"blocks of {run} do not divide its {first.out_features} columns, and would reach over gate and up"
        if why:
            raise InputError(
                f"block {name!r}: norm and gated unit cannot be one: {why}; take the recipe without '+joined'"
            )
        passing = Passing(norm)
        made = Unit(first.spec, passing.eps, plans_of(first, backend), self.smooth)
        setattr(module, self.norm, passing)
        setattr(module, self.unit, NormedGate(unit, passing, made, backend).train(unit.training))
        return module

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return f"block with {self.norm} and {self.unit} of narrow gate_proj, up_proj, down_proj"

    def __str__(self) -> str:
        return f"norm and {'Smooth-SwiGLU' if self.smooth else 'SwiGLU'} in one with their casts"


def fed(
    block: nn.Module, norm: str, unit: str, parts: tuple[str, ...]
) -> tuple[nn.Module, nn.Module, list[Any]] | None:
    """Return a norm of ``block``, the module that it feeds, and that one's layers; None where nothing can be joined."""
    first, then = getattr(block, norm, None), getattr(block, unit, None)
    if first is None or then is None or not type(first).__name__.endswith("RMSNorm"):
        return None
    layers = [getattr(then, part, None) for part in parts]
    return (first, then, layers) if isinstance(layers[0], Linear) else None


def unlike(layers: list[Any]) -> str | None:
    """Return what stands against layers as one of more outputs (a last one that follows aside), or None."""
    first = layers[0]
    if any(not isinstance(layer, Linear) or layer.spec != first.spec for layer in layers):
        return "its three layers are not narrowed alike"
    same = [layer for layer in layers if layer.in_features == first.in_features]
    return "layers of one input have different factors" if len({layer.alpha for layer in same}) > 1 else None


def other_block(block: nn.Module, norm: nn.Module) -> str | None:
    """Return why the norms of ``block`` do not stand as Llama's, each before the one unit that it feeds, or None."""
    others = [name for name, _ in block.named_children() if name.endswith("norm") and name not in _NORMS]
    if others:
        return f"the block has another norm, {others[0]}"
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta:  # a model without numbers, for a plan of what would run
        return None
    x = torch.linspace(-2, 3, len(weight), device=weight.device).to(weight.dtype)
    with torch.no_grad():
        found, plain = norm(x[None])[0].float(), F.rms_norm(x.float(), x.shape, weight.float(), eps_of(norm))
    near = (found - plain).norm() <= 0.02 * plain.norm()
    return None if bool(near) else f"{type(norm).__name__} is not x / rms(x) times its weight"


def eps_of(norm: nn.Module) -> float:
    """Return what a norm adds to the mean square."""
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return float(eps or torch.finfo(torch.float32).eps)


def against(spec: LinearSpec) -> str | None:
    """Return what speaks against joining layers of ``spec`` with norm and gate, or None."""
    if any(gemm.transform is not None for gemm in (spec.fwd, spec.dgrad, spec.wgrad)):
        return "a gemm rotates its operands"
    for first, second in PAIRS.values():
        one, other = spec.operand(first), spec.operand(second)
        assert isinstance(one, Cast)
        if isinstance(other, Reuse) and (other.then is not None or one.tile.rows == 1 or one.format.bits != 8):
            return f"operand {second} reuses codes that cannot be turned"
        if isinstance(other, Cast) and other.scale.delayed is not None:
            return f"operand {second} keeps a history of its own"
    return None


def cast_run(spec: LinearSpec) -> int:
    """Return how many columns of the gradient share a scale; 0 where that does not depend on a column's place."""
    cast = spec.operand("dgrad.g")
    assert isinstance(cast, Cast)
    return cast.tile.cols


def _gate(unit: nn.Module) -> str | None:
    return None if "silu" in type(getattr(unit, "act_fn", None)).__name__.lower() else "its gate is not SiLU"


def plans_of(layer: Linear, backend: str, what: str = "norm and gated unit") -> Plans:
    """Return how the gemms run: natively where all three and all passes do, else emulated."""
    device, spec = layer.weight.device, layer.spec
    made = choices(spec, backend, device, what)
    unit = Unit(spec, 0.0, Plans())
    ready = [choose_both(backend, *unit.casts(t), layer.weight, what) for t in PAIRS]
    if any(choice.backend == "emulate" for choice in (*made, *ready)):
        return Plans()
    return Plans(*(choice.plan for choice in made))
