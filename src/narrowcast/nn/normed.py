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
from torch import Tensor, nn

from narrowcast.backend import choose_both, passes
from narrowcast.nn.context import Context, Gradients, in_dtype, output_dtype, own_precision
from narrowcast.nn.joined import Joined, Passing
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import Plans, choices
from narrowcast.nn.native import _product as product
from narrowcast.nn.saved import codes_again, form_of, tensors_of
from narrowcast.nn.spec import OPERANDS, PAIRS, LinearSpec
from narrowcast.ops import Reuse, matmul, operand, split
from narrowcast.passes import How
from narrowcast.quantize import Cast, QTensor

_PARTS = ("gate_proj", "up_proj", "down_proj")
_WHAT = "norm and gated unit"


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
        one, two = (layer if layer.step is None else layer.at(saved.pop(5)) for layer in ctx.layers)
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
            layer.advance()
        return dx.view(*ctx.lead, dx.shape[-1]), d_norm.to(norm.dtype), *d_gated.chunk(2), d_down, None, None, None


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
        self.unit = replace(self.unit, plans=plans_of(self.gate_proj, self.backend, _WHAT))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output for the block's stream ``x`` ``[..., width]``, not yet normed."""
        out = output_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            layers = (self.gate_proj.context, self.down_proj.context)
            weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
            y: Tensor = _Normed.apply(x, self._norm[0].weight, *weights, self.unit, out, layers)  # type: ignore[no-untyped-call]
            return y

    def extra_repr(self) -> str:
        """Say how the norm is done."""
        return f"eps={self.unit.eps}, smooth={self.unit.smooth}, native={self.unit.plans.any}"


@dataclass(frozen=True)
class NormedGates(Joined):
    """Join the norm and the gated unit of every block of a converted model (Llama's names) into a `NormedGate`.

    Attributes:
        norm, unit: names of the two modules within a block.
        smooth: Smooth-SwiGLU.
    """

    norm: str = "post_attention_layernorm"
    unit: str = "mlp"
    smooth: bool = False
    parts = _PARTS
    what = _WHAT

    def objection(self, unit: nn.Module, layers: list[Linear]) -> str | None:
        """See `Joined.objection`."""
        first, run = layers[0], layers[0].spec.cast("dgrad.g").tile.cols
        if "silu" not in type(getattr(unit, "act_fn", None)).__name__.lower():
            return "its gate is not SiLU"
        if any(layer.bias is not None for layer in layers):
            return "a layer has a bias"
        if run and first.out_features % run:
            return f"blocks of {run} do not divide its {first.out_features} columns, and would reach over gate and up"
        return None

    def join(self, block: nn.Module, unit: nn.Module, layers: list[Linear], norm: Passing, backend: str) -> None:
        """See `Joined.join`."""
        made = Unit(layers[0].spec, norm.eps, plans_of(layers[0], backend, self.what), self.smooth)
        setattr(block, self.unit, NormedGate(unit, norm, made, backend).train(unit.training))

    def __str__(self) -> str:
        return f"norm and {'Smooth-SwiGLU' if self.smooth else 'SwiGLU'} in one with their casts"


def plans_of(layer: Linear, backend: str, what: str) -> Plans:
    """Return how the gemms run: natively where all three and all passes do, else emulated."""
    device, spec = layer.weight.device, layer.spec
    made = choices(spec, backend, device, what)
    unit = Unit(spec, 0.0, Plans())
    ready = [choose_both(backend, *unit.casts(t), layer.weight, what) for t in PAIRS]
    if any(choice.backend == "emulate" for choice in (*made, *ready)):
        return Plans()
    return Plans(*(choice.plan for choice in made))
