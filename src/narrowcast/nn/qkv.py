"""RMSNorm and the three projections of attention as one: ``q, k, v = W norm(x)``, W the three weights stacked.

One pass makes the codes of the normed x, one product each of the three gemms takes the place of three: k and v are
small beside q, and products with few outputs, or sums over few, are slow. Where a scale is shared by a whole tensor,
the three share it, as in `nn.normed`; what is kept for the backward pass: x, 1/rms, codes of the normed x and of W.

The attention module goes on calling q_proj, k_proj and v_proj one after the other: the first does the work of all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.nn.context import Context, Gradients, output_dtype, own_precision
from narrowcast.nn.joined import Joined, Passing
from narrowcast.nn.linear import Linear
from narrowcast.nn.normed import Unit, plans_of
from narrowcast.nn.saved import codes_again, form_of, tensors_of

_WHAT = "norm and projections of attention"


class _NormedLinear(torch.autograd.Function):
    """``norm(x) w^T`` for ``x [M, width]``, ``norm [width]``, ``w [N, width]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, w: Tensor, unit: Unit, out: torch.dtype, layer: Context) -> Tensor:
        run = unit.passes
        (xq, xt), inverse = run.rms_norm_both(x, norm, unit.eps, *unit.casts("x"), **unit.how("x", layer, "normed x"))
        wq, wt = run.quantize_both(w, *unit.casts("w"), **unit.how("w", layer, "weights of q, k and v"))
        steps = [] if layer.step is None else [layer.step.clone()]
        ctx.save_for_backward(x, norm, inverse, *steps, *tensors_of(xt), *tensors_of(wt))
        ctx.forms = [form_of(xt), form_of(wt)]
        ctx.unit, ctx.layer, ctx.type = unit, layer, w.dtype
        return unit.product("fwd", xq, wq, out, layer.alpha)

    @staticmethod
    @own_precision
    def backward(ctx: Any, g: Tensor) -> Gradients:
        saved = list(ctx.saved_tensors)
        x, norm, inverse = saved[:3]
        live: Context = ctx.layer
        layer = live if live.step is None else live.at(saved.pop(3))
        xt, wt = codes_again(saved[3:], ctx.forms)
        unit: Unit = ctx.unit
        run = unit.passes
        gq, gt = run.quantize_both(g, *unit.casts("g"), **unit.how("g", layer, "gradients of q, k and v"))
        dn = unit.product("dgrad", gq, wt, x.dtype, layer.alpha)
        dw = unit.product("wgrad", gt, xt, ctx.type, layer.alpha)
        dx, d_norm = run.rms_norm_backward(dn, x, norm, inverse)
        live.advance()
        return dx, d_norm.to(norm.dtype), dw, None, None, None


class First(Linear):
    """q_proj, which norms and projects for k_proj and v_proj too; random bits and histories are its own.

    Attributes:
        joint: plans of the products; none for emulation. Settled anew where the weights move.
    """

    def __init__(self, source: Linear, others: tuple["Other", ...], norm: Passing) -> None:
        super().__init__(source, source.spec, source.site, source.seed, source.backend, source.alpha)
        self._joined = (others, norm)  # in a tuple: their parameters stay where they are

    def _settle(self) -> None:
        super()._settle()
        self.joint = plans_of(self, self.backend, _WHAT)

    def forward(self, x: Tensor) -> Tensor:
        """Return q for the block's stream ``x`` ``[..., width]``, not yet normed, and leave k and v to be fetched."""
        others, norm = self._joined
        layers, out = (self, *others), output_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.cat([layer.weight for layer in layers])
            unit = Unit(self.spec, norm.eps, self.joint)
            flat = x.reshape(-1, x.shape[-1])
            y: Tensor = _NormedLinear.apply(flat, norm.weight, weight, unit, out, self.context)  # type: ignore[no-untyped-call]
            parts = y.view(*x.shape[:-1], -1).split([layer.out_features for layer in layers], -1)
            q, *rest = [_plus(part, layer.bias) for part, layer in zip(parts, layers, strict=True)]
        for other, made in zip(others, rest, strict=True):
            other.made = (x, made)
        return q


class Other(Linear):
    """k_proj or v_proj, whose output `First` has made.

    Attributes:
        made: that output, behind the input that it is of; fetched once.
    """

    def __init__(self, source: Linear) -> None:
        super().__init__(source, source.spec, source.site, source.seed, source.backend, source.alpha)
        self.made: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``, with which q_proj was called just before."""
        made, self.made = self.made, None
        if made is None or made[0] is not x:
            raise InputError(
                f"layer {self.site!r} is joined with q_proj and was called without it, or with another input; "
                "convert this model without '+joined'"
            )
        return made[1].contiguous()  # what attention keeps of v is not to keep q and k as well


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else (x + bias).to(x.dtype)


@dataclass(frozen=True)
class NormedQKV(Joined):
    """Join the norm and the projections of attention in every block of a converted model (Llama's names).

    Attributes:
        norm, unit: names of the two modules within a block.
    """

    norm: str = "input_layernorm"
    unit: str = "self_attn"
    parts = ("q_proj", "k_proj", "v_proj")
    what = _WHAT

    def join(self, block: nn.Module, unit: nn.Module, layers: list[Linear], norm: Passing, backend: str) -> None:
        """See `Joined.join`."""
        others = tuple(Other(layer) for layer in layers[1:])
        for part, made in zip(self.parts, (First(layers[0], others, norm), *others), strict=True):
            setattr(unit, part, made.train(unit.training))

    def __str__(self) -> str:
        return "norm, q, k and v in one with their casts"
