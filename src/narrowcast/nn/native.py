"""The linear layer with gemms on tensor cores: which of the three, and what is kept for the backward pass.

A gemm runs natively where its two casts have kernels and the library multiplies their codes (`backend.choose`); the
others are emulated in the same layer. The operands are made as in `nn.linear`: same sources, same random bits, same
histories, so codes and scales are the emulation's.

What is kept: of x, the codes that wgrad will multiply, already transposed, so that the wide activation need not live;
of w, the parameter itself, or where codes are reused, those.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from narrowcast import backend
from narrowcast.accumulate import tensor_of
from narrowcast.backend import Choice, choose
from narrowcast.kernels.plan import Plan
from narrowcast.nn.context import Context
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Reuse, matmul
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import advance

GEMMS = ("fwd", "dgrad", "wgrad")
#: operands that may be reused, and the gemm that casts them first
_FIRST = {"dgrad.w": "fwd", "wgrad.g": "dgrad", "wgrad.x": "fwd"}
SIXTEEN_BY_NAME = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # what kernels write besides float32
SIXTEEN = tuple(SIXTEEN_BY_NAME.values())
Kept = QTensor | Tensor  # an operand as a native gemm takes it, or decoded


@dataclass(frozen=True)
class Plans:
    """How the three gemms of a layer run: a plan each, or None for emulation."""

    fwd: Plan | None = None
    dgrad: Plan | None = None
    wgrad: Plan | None = None

    @property
    def any(self) -> bool:
        """Whether any of them runs natively."""
        return self != Plans()


def choices(spec: LinearSpec, name: str, device: torch.device, what: str) -> tuple[Choice, Choice, Choice]:
    """Return what runs each of the three gemms of ``spec`` under backend ``name``."""
    made: dict[str, Choice] = {}
    for gemm in GEMMS:
        against = _against(spec, gemm, made)
        made[gemm] = choose(name, spec.resolved(gemm), device, f"{what}, {gemm}", against)
    return made["fwd"], made["dgrad"], made["wgrad"]


def plans(spec: LinearSpec, name: str, device: torch.device, what: str) -> Plans:
    """Return the plans of the gemms that run natively under backend ``name``; see `choices`."""
    return Plans(*(choice.plan for choice in choices(spec, name, device, what)))


def _against(spec: LinearSpec, gemm: str, made: dict[str, Choice]) -> str | None:
    """Return what the reuse of codes has against a kernel for ``gemm``, or None."""
    for label, first in _FIRST.items():
        operand = spec.operand(label)
        if not label.startswith(gemm) or not isinstance(operand, Reuse):
            continue
        tile = spec.cast(label).tile
        if operand.then is not None:
            return f"operand {label} is decoded and cast again, which has no kernel"
        if tile.rows != tile.cols:
            return f"operand {label} reuses codes whose scales (per {tile}) do not run along this gemm"
        if made[first].backend == "emulate":
            return f"operand {label} reuses codes of {first}, which is emulated"
    return None


def early(spec: LinearSpec) -> bool:
    """Whether wgrad's cast of x may be made in the forward pass: it does not wait for a history to advance."""
    operand = spec.operand("wgrad.x")
    return isinstance(operand, Cast) and operand.scale.delayed is None


class NativeLinear(torch.autograd.Function):
    """``y = alpha x w^T`` with x ``[M, in]``, w ``[out, in]``, some of its gemms on tensor cores."""

    @staticmethod
    def forward(  # noqa: D102 - autograd's own
        ctx: Any, x: Tensor, w: Tensor, context: Context, spec: LinearSpec, how: Plans, out: torch.dtype, train: bool
    ) -> Tensor:
        y, xq, wq = _forward(context, spec, how, x, w, out)
        if train:
            kept_x = _keep_x(context, spec, how, x, xq)
            kept_w = wq if isinstance(spec.operand("dgrad.w"), Reuse) else w
            step = context.step.clone() if context.step is not None else None
            tensors_x, tensors_w = _tensors(kept_x), _tensors(kept_w)
            ctx.save_for_backward(*tensors_x, *tensors_w, *([step] if step is not None else []))
            ctx.split, ctx.forms = len(tensors_x), (_form(kept_x), _form(kept_w))
            ctx.context, ctx.spec, ctx.how, ctx.types = context, spec, how, (x.dtype, w.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102 - autograd's own
        spec: LinearSpec = ctx.spec
        live: Context = ctx.context
        saved = list(ctx.saved_tensors)
        step = saved.pop() if live.step is not None else None
        context = replace(live, step=step)
        x, w = _form_again(saved[: ctx.split], ctx.forms[0]), _form_again(saved[ctx.split :], ctx.forms[1])
        dx = dw = None
        needs_x, needs_w = ctx.needs_input_grad[:2]
        gq: Kept | None = None
        if needs_x or isinstance(spec.operand("wgrad.g"), Reuse):
            gq = _first_g(context, spec, ctx.how, g)
        if needs_x:
            assert gq is not None
            dx = _dgrad(context, spec, ctx.how, gq, w, ctx.types[0])
        if needs_w:
            dw = _wgrad(context, spec, ctx.how, g, gq, x, ctx.types[1])
        if live.step is not None:
            live.step.add_(1)
        if live.history is not None:
            advance(live.history)
        return dx, dw, None, None, None, None, None


def _forward(
    context: Context, spec: LinearSpec, how: Plans, x: Tensor, w: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Kept, Kept]:
    """Return the layer's product, and its operands."""
    if how.fwd:
        xq, wq = context.narrow(spec, "fwd.x", x), context.narrow(spec, "fwd.w", w)
        return _product(xq, wq, spec, "fwd", how.fwd, context.alpha, dtype), xq, wq
    first, second = (context.operand(spec, f"fwd.{side}", t, None)[1] for side, t in (("x", x), ("w", w)))
    return matmul(first, second, spec.fwd, context.alpha).to(dtype), tensor_of(first), tensor_of(second)


def _product(
    a: QTensor, b: QTensor, spec: LinearSpec, name: str, plan: Plan, alpha: float, dtype: torch.dtype
) -> Tensor:
    """Return the product of gemm ``name`` in ``dtype``, rounded to the gemm's output format on the way."""
    out = getattr(spec, name).out
    if out is None:
        return backend.gemm(a, b, plan, dtype if dtype in SIXTEEN else torch.float32, alpha).to(dtype)
    kernel = SIXTEEN_BY_NAME.get(out.name)
    if kernel is not None:
        return backend.gemm(a, b, plan, kernel, alpha).to(dtype)
    rounded: Tensor = out.round(backend.gemm(a, b, plan, torch.float32, alpha))
    return rounded.to(dtype)


def _keep_x(context: Context, spec: LinearSpec, how: Plans, x: Tensor, first: Kept) -> Kept:
    """Return what wgrad needs of x: codes along the tokens where they can be made now, or its source."""
    if isinstance(spec.operand("wgrad.x"), Reuse):
        if how.wgrad and isinstance(first, QTensor):
            return backend.transposed(first)
        return first if isinstance(first, QTensor) else first[:, : x.shape[1]]
    if how.wgrad and early(spec):
        return context.narrow(spec, "wgrad.x", x.mT)
    return x


def _first_g(context: Context, spec: LinearSpec, how: Plans, g: Tensor) -> Kept:
    if how.dgrad:
        return context.narrow(spec, "dgrad.g", g)
    return tensor_of(context.operand(spec, "dgrad.g", g, None)[1])


def _dgrad(context: Context, spec: LinearSpec, how: Plans, g: Kept, w: Kept, dtype: torch.dtype) -> Tensor:
    if not how.dgrad:
        first = _decoded(w).mT
        decoded = context.operand(spec, "dgrad.w", first, first)[1]
        return matmul(_decoded(g), decoded, spec.dgrad, context.alpha).to(dtype)
    assert isinstance(g, QTensor)
    wq = backend.transposed(w) if isinstance(w, QTensor) else context.narrow(spec, "dgrad.w", w.mT)
    return _product(g, wq, spec, "dgrad", how.dgrad, context.alpha, dtype)


def _wgrad(
    context: Context, spec: LinearSpec, how: Plans, g: Tensor, first: Kept | None, x: Kept, dtype: torch.dtype
) -> Tensor:
    reuses = isinstance(spec.operand("wgrad.g"), Reuse)
    if not how.wgrad:
        again = _decoded(first)[:, : g.shape[1]].mT if reuses and first is not None else None
        a = context.operand(spec, "wgrad.g", g.mT, again)[1]
        wide = _decoded(x).mT
        return matmul(a, context.operand(spec, "wgrad.x", wide, wide)[1], spec.wgrad, context.alpha).to(dtype)
    if reuses:
        assert isinstance(first, QTensor)
        gq = backend.transposed(first)
    else:
        gq = context.narrow(spec, "wgrad.g", g.mT)
    xq = x if isinstance(x, QTensor) else context.narrow(spec, "wgrad.x", x.mT)
    return _product(gq, xq, spec, "wgrad", how.wgrad, context.alpha, dtype)


def _decoded(x: Kept) -> Tensor:
    return replace(x, dtype=torch.float32).dequantize() if isinstance(x, QTensor) else x


# --- what autograd keeps: tensors on one side, everything else on the other ---

_Form = tuple[Cast, tuple[int, ...], tuple[int, ...], torch.dtype] | None


def _tensors(x: Kept) -> list[Tensor]:
    if not isinstance(x, QTensor):
        return [x]
    return [x.codes, x.scales, *([] if x.tensor_scale is None else [x.tensor_scale])]


def _form(x: Kept) -> _Form:
    return (x.cast, x.shape, x.padded, x.dtype) if isinstance(x, QTensor) else None


def _form_again(tensors: list[Tensor], form: _Form) -> Kept:
    if form is None:
        return tensors[0]
    cast, shape, padded, dtype = form
    return QTensor(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None, cast, shape, padded, dtype)
