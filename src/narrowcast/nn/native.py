"""The linear layer with gemms on tensor cores: which of the three, and what is kept for the backward pass.

A gemm runs natively where its two casts have kernels and the library multiplies their codes (`backend.choose`); the
others are emulated in the same layer. The operands are made as in `nn.linear`: same sources, same random bits, same
histories, so codes and scales are the emulation's.

What is kept: of x and w, the codes that the backward pass will multiply, made in the same pass as the forward ones, so
that the wide activation need not live. Only a cast with a history of its own waits for its wide source, and what the
spec says is remade: a weight lives anyway, so its codes for the backward pass can be made there; so can those of
attention's output.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from narrowcast import backend
from narrowcast.accumulate import Codes, Operand
from narrowcast.backend import Choice, choose
from narrowcast.kernels.plan import Plan
from narrowcast.nn.context import Context, Gradients, in_dtype, own_precision, reused
from narrowcast.nn.saved import Kept, again, form_of, tensors_of
from narrowcast.nn.spec import OPERANDS, PAIRS, LinearSpec
from narrowcast.ops import Gemm, Reuse, matmul, split
from narrowcast.passes import later
from narrowcast.quantize import QTensor

GEMMS = ("fwd", "dgrad", "wgrad")
SIXTEEN_BY_NAME = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # what kernels write besides float32
SIXTEEN = tuple(SIXTEEN_BY_NAME.values())


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
    for label in OPERANDS:
        operand, first = spec.operand(label), PAIRS[label[-1]][0].split(".")[0]
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


def _now(spec: LinearSpec, label: str) -> bool:
    """Whether operand ``label`` may be made with its tensor's first cast: it has no history of its own to wait for."""
    operand = spec.operand(label)
    return isinstance(operand, Reuse) or operand.scale.delayed is None


class NativeLinear(torch.autograd.Function):
    """``y = alpha x w^T`` with x ``[..., in]``, w ``[out, in]``, some of its gemms on tensor cores.

    It becomes a matrix in here, for the gradient to be cast as it comes (`kernels.both_ops.matrix`).
    """

    @staticmethod
    def forward(  # noqa: D102 - autograd's own
        ctx: Any, x: Tensor, w: Tensor, context: Context, spec: LinearSpec, how: Plans, out: torch.dtype, train: bool
    ) -> Tensor:
        lead = x.shape[:-1]
        y, kept_x, kept_w = _forward(context, spec, how, x.reshape(-1, x.shape[-1]), w, out, train)
        if train:
            step = context.step.clone() if context.step is not None else None
            tensors_x, tensors_w = tensors_of(kept_x), tensors_of(kept_w)
            ctx.save_for_backward(*tensors_x, *tensors_w, *([step] if step is not None else []))
            ctx.split, ctx.forms = len(tensors_x), (form_of(kept_x), form_of(kept_w))
            ctx.context, ctx.spec, ctx.how, ctx.types, ctx.lead = context, spec, how, (x.dtype, w.dtype), lead
        return y.view(*lead, y.shape[-1])

    @staticmethod
    @own_precision
    def backward(ctx: Any, g: Tensor) -> Gradients:  # noqa: D102 - autograd's own
        spec: LinearSpec = ctx.spec
        live: Context = ctx.context
        saved = list(ctx.saved_tensors)
        context = live if live.step is None else live.at(saved.pop())
        x, w = again(saved[: ctx.split], ctx.forms[0]), again(saved[ctx.split :], ctx.forms[1])
        needs_x, needs_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        along, across = _gradients(context, spec, ctx.how, g, needs_x, needs_w)
        g = g.reshape(-1, g.shape[-1])
        dw = _wgrad(context, spec, ctx.how, g, along, across, x, ctx.types[1]) if needs_w else None
        if dw is not None and isinstance(along, QTensor) and not isinstance(x, QTensor):
            along = replace(along, scales=later(along.scales, dw))  # first dw, with which x ends
        dx = _dgrad(context, spec, ctx.how, along, w, ctx.types[0]) if needs_x else None
        live.advance()
        return None if dx is None else dx.view(*ctx.lead, dx.shape[-1]), dw, None, None, None, None, None


def _forward(
    context: Context,
    spec: LinearSpec,
    how: Plans,
    x: Tensor,
    w: Tensor,
    dtype: torch.dtype,
    train: bool,
) -> tuple[Tensor, Kept, Kept]:
    """Return the layer's product, and what the backward pass needs of x and w."""
    if how.fwd is None:
        return _emulated(context, spec, how, x, w, dtype, train)
    operands, found = [], []
    for wide, first, second, after in ((x, "fwd.x", "wgrad.x", how.wgrad), (w, "fwd.w", "dgrad.w", how.dgrad)):
        needed: Kept
        remade = spec.remakes(first[-1]) and (first[-1] == "w" or torch.compiler.is_compiling())
        if train and after and _now(spec, second) and not remade:
            q, needed = context.narrow_both(spec, first, second, wide)
        else:
            q = context.narrow(spec, first, wide)
            needed = q if isinstance(spec.operand(second), Reuse) and not (remade and after) else wide
        operands.append(q)
        found.append(needed)
    y = _product(operands[0], operands[1], spec, "fwd", how.fwd, context.alpha, dtype)
    return y, found[0], found[1]


def _emulated(
    context: Context, spec: LinearSpec, how: Plans, x: Tensor, w: Tensor, dtype: torch.dtype, train: bool
) -> tuple[Tensor, Kept, Kept]:
    """Return what `_forward` does, the product emulated."""
    first, second = (context.operand(spec, f"fwd.{side}", t, None)[1] for side, t in (("x", x), ("w", w)))
    y = in_dtype(matmul(first, second, spec.fwd, context.alpha), dtype)
    kept_x: Kept = reused(first, spec.wgrad, x.shape[1]) if isinstance(spec.operand("wgrad.x"), Reuse) else x
    if train and how.wgrad and _now(spec, "wgrad.x"):
        kept_x = context.narrow(spec, "wgrad.x", x.mT)
    return y, kept_x, reused(second, spec.dgrad, w.shape[1]) if isinstance(spec.operand("dgrad.w"), Reuse) else w


def _product(
    a: QTensor, b: QTensor, spec: LinearSpec, name: str, plan: Plan, alpha: float, dtype: torch.dtype
) -> Tensor:
    """Return the product of gemm ``name`` in ``dtype``, rounded to the gemm's output format on the way."""
    out = getattr(spec, name).out
    if out is None:
        return in_dtype(backend.gemm(a, b, plan, dtype if dtype in SIXTEEN else torch.float32, alpha), dtype)
    kernel = SIXTEEN_BY_NAME.get(out.name)
    if kernel is not None:
        return in_dtype(backend.gemm(a, b, plan, kernel, alpha), dtype)
    rounded: Tensor = out.round(backend.gemm(a, b, plan, torch.float32, alpha))
    return in_dtype(rounded, dtype)


def _gradients(
    context: Context, spec: LinearSpec, how: Plans, g: Tensor, needs_x: bool, needs_w: bool
) -> tuple[Kept | None, QTensor | None]:
    """Return the output gradient as dgrad takes it, and as wgrad does, where they are made together."""
    reused = isinstance(spec.operand("wgrad.g"), Reuse)
    if how.dgrad and how.wgrad and needs_w and (needs_x or reused) and _now(spec, "wgrad.g"):
        return context.narrow_both(spec, "dgrad.g", "wgrad.g", g)
    g = g.reshape(-1, g.shape[-1])
    if not needs_x and not (needs_w and reused):
        return None, None
    if how.dgrad:
        return context.narrow(spec, "dgrad.g", g), None
    return context.operand(spec, "dgrad.g", g, None)[1], None


def _dgrad(context: Context, spec: LinearSpec, how: Plans, g: Kept | None, w: Kept, dtype: torch.dtype) -> Tensor:
    assert g is not None
    if not how.dgrad:
        second = context.turned(spec, "dgrad.w", _operand(w, spec.dgrad))
        return matmul(_operand(g, spec.dgrad), second, spec.dgrad, context.alpha).to(dtype)
    assert isinstance(g, QTensor)
    assert not isinstance(w, Codes)  # kept for emulated gemms alone
    if isinstance(w, QTensor):
        wq = w
    elif "w" in spec.remade:
        wq = context.narrow_both(spec, "fwd.w", "dgrad.w", w, after=g.codes)[1]
    else:
        wq = context.narrow(spec, "dgrad.w", w.mT)
    return _product(g, wq, spec, "dgrad", how.dgrad, context.alpha, dtype)


def _wgrad(
    context: Context,
    spec: LinearSpec,
    how: Plans,
    g: Tensor,
    along: Kept | None,
    across: QTensor | None,
    x: Kept,
    dtype: torch.dtype,
) -> Tensor:
    if not how.wgrad:
        again = None
        if along is not None and isinstance(spec.operand("wgrad.g"), Reuse):
            again = reused(_operand(along, spec.wgrad), spec.wgrad, g.shape[1]).mT
        a = context.operand(spec, "wgrad.g", g.mT, again)[1]
        second = context.turned(spec, "wgrad.x", _operand(x, spec.wgrad))
        return matmul(a, second, spec.wgrad, context.alpha).to(dtype)
    gq = across if across is not None else context.narrow(spec, "wgrad.g", g.mT)
    assert not isinstance(x, Codes)
    if isinstance(x, QTensor):
        xq = x
    elif "x" in spec.remade:
        xq = context.narrow_both(spec, "fwd.x", "wgrad.x", later(x, g), like=x)[1]
    elif "x-alive" in spec.remade:  # nothing to make it again from: its maximum is tied, not a copy of it
        xq = context.narrow_both(spec, "fwd.x", "wgrad.x", x, after=g)[1]
    else:
        xq = context.narrow(spec, "wgrad.x", x.mT)
    return _product(gq, xq, spec, "wgrad", how.wgrad, context.alpha, dtype)


def _operand(x: Kept, gemm: Gemm) -> Operand:
    """Return what was kept as an emulated ``gemm`` takes it: codes where its accumulator works on them, or decoded."""
    if not isinstance(x, QTensor):
        return x
    return split(x) if gemm.accumulator.on_codes else replace(x, dtype=torch.float32).dequantize()
