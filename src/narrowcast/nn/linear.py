"""The linear layer as three gemms with a cast for each of their six operands.

    y  = gemm(x,   w)       fwd      along in
    dx = gemm(g,   w.T)     dgrad    along out
    dw = gemm(g.T, x.T)     wgrad    along tokens

Random bits and amax histories live in buffers that advance by themselves when the backward pass has used them, so
that recomputation (activation checkpointing) sees what the forward pass saw, and a checkpoint resumes exactly.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.accumulate import Codes, tensor_of
from narrowcast.errors import InputError
from narrowcast.nn.context import Context, Gradients, output_dtype, own_precision, reused
from narrowcast.nn.native import GEMMS, NativeLinear, Plans, choices
from narrowcast.nn.saved import again, form_of, tensors_of
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Reuse, matmul
from narrowcast.quantize import Cast, QTensor


@dataclass(frozen=True)
class Operand:
    """One prepared operand, for looking at: what went into the cast and what the gemm multiplies.

    ``source`` and ``result`` are float32 ``[rows, K]`` after padding and rotation.
    """

    source: Tensor
    cast: Cast
    result: Tensor
    reused: bool


class _Linear(torch.autograd.Function):
    """``y = x w^T`` with x ``[M, in]``, w ``[out, in]``; the product is float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, context: Context, spec: LinearSpec) -> Tensor:
        xq = context.operand(spec, "fwd.x", x, None)[1]
        wq = context.operand(spec, "fwd.w", w, None)[1]
        kept_x = reused(xq, spec.wgrad, x.shape[1]) if isinstance(spec.operand("wgrad.x"), Reuse) else x
        kept_w = reused(wq, spec.dgrad, w.shape[1]) if isinstance(spec.operand("dgrad.w"), Reuse) else w
        step = context.step.clone() if context.step is not None else None
        tensors_x, tensors_w = tensors_of(kept_x), tensors_of(kept_w)
        ctx.save_for_backward(*([step] if step is not None else []), *tensors_x, *tensors_w)
        ctx.split, ctx.forms = len(tensors_x), (form_of(kept_x), form_of(kept_w))
        ctx.context, ctx.spec = context, spec
        return matmul(xq, wq, spec.fwd, context.alpha)

    @staticmethod
    @own_precision
    def backward(ctx: Any, g: Tensor) -> Gradients:
        saved = list(ctx.saved_tensors)
        spec: LinearSpec = ctx.spec
        live: Context = ctx.context
        context = live if live.step is None else live.at(saved.pop(0))
        x, w = again(saved[: ctx.split], ctx.forms[0]), again(saved[ctx.split :], ctx.forms[1])
        assert not isinstance(x, QTensor)
        assert not isinstance(w, QTensor)
        dx = dw = None
        reuses_g = isinstance(spec.operand("wgrad.g"), Reuse)
        gq = context.operand(spec, "dgrad.g", g, None)[1] if ctx.needs_input_grad[0] or reuses_g else None
        if ctx.needs_input_grad[0]:
            assert gq is not None
            dx = matmul(gq, context.turned(spec, "dgrad.w", w), spec.dgrad, context.alpha)
        if ctx.needs_input_grad[1]:
            first = reused(gq, spec.wgrad, g.shape[1]).mT if gq is not None and reuses_g else None
            a = context.operand(spec, "wgrad.g", g.mT, first)[1]
            dw = matmul(a, context.turned(spec, "wgrad.x", x), spec.wgrad, context.alpha)
        live.advance()
        return dx, dw, None, None


class Linear(nn.Linear):
    """A drop-in `torch.nn.Linear` whose three gemms follow a `LinearSpec`.

    ``weight`` and ``bias`` stay as they are (float32: the master weights); only what the gemms see is narrowed. Any
    leading dimensions, empty batches and non-contiguous inputs work. Under autocast the output has autocast's dtype,
    otherwise the input's.

    Attributes:
        spec: the three gemms.
        site: the layer's name in its model; names it in errors and keys its random bits.
        seed: key of its random bits.
        backend: ``auto``, ``emulate`` or ``native``; which gemms run on tensor cores is settled anew where the layer
            moves to another device (`choices`).
        alpha: multiplies all three products (a constant of the layer's parametrisation).
    """

    step: Tensor | None
    history: Tensor | None

    def __init__(
        self, source: nn.Linear, spec: LinearSpec, site: str, seed: int = 0, backend: str = "auto", alpha: float = 1.0
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight, self.bias = source.weight, source.bias
        self.spec, self.site, self.seed, self.backend, self.alpha = spec, site, seed, backend, alpha
        self.key = zlib.crc32(site.encode()) & 0x0FFFFFFF  # 28 bits: 4 more number the operands
        device = source.weight.device
        step = torch.zeros((), dtype=torch.int64, device=device) if spec.random else None
        history = torch.zeros(len(OPERANDS), spec.history + 1, device=device) if spec.history else None
        self.register_buffer("step", step)
        self.register_buffer("history", history)
        self._settle()

    def _settle(self) -> None:
        """Settle which gemms run on tensor cores where the weight is now."""
        asked = "emulate" if self.backend == "emulate" else "auto"
        made = choices(self.spec, asked, self.weight.device, f"layer {self.site!r}")
        self.plans = Plans(*(choice.plan for choice in made))
        emulated = [f"{name}: {c.why}" for name, c in zip(GEMMS, made, strict=True) if c.backend == "emulate"]
        self.missing = emulated[0] if emulated and self.backend == "native" else ""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Linear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._settle()
        return self

    @property
    def context(self) -> Context:
        """What the casts need besides the tensors."""
        return Context(self.site, self.seed, self.key, self.step, self.history, self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``alpha x w^T + bias`` for x ``[..., in_features]``."""
        if self.missing:
            raise InputError(f"layer {self.site!r}: backend 'native' cannot run here: {self.missing}; use 'auto'")
        dtype = output_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._product(x, dtype)
            return (y + self.bias if self.bias is not None else y).to(dtype)

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``alpha x w^T`` for x ``[..., in]``: float32, or ``dtype`` where kernels run."""
        if not self.plans.any:
            flat = x.reshape(-1, self.in_features)
            y: Tensor = _Linear.apply(flat, self.weight, self.context, self.spec)  # type: ignore[no-untyped-call]
            return y.view(*x.shape[:-1], self.out_features)
        train = torch.is_grad_enabled()
        return NativeLinear.apply(x, self.weight, self.context, self.spec, self.plans, dtype, train)  # type: ignore[no-untyped-call,no-any-return]

    def extra_repr(self) -> str:
        """Say what differs from `torch.nn.Linear`."""
        return f"{super().extra_repr()}, fwd={self.spec.fwd.a} @ {self.spec.fwd.b}"


def operands(layer: Linear, x: Tensor, w: Tensor, g: Tensor) -> dict[str, Operand]:
    """Return the six operands that ``layer``'s gemms would multiply, for analysis; the layer is left as it was.

    Args:
        layer: a converted layer.
        x, w, g: its input ``[M, in]``, weight ``[out, in]`` and output gradient ``[M, out]``, float32.
    """
    context = layer.context
    if context.history is not None:
        context = replace(context, history=context.history.clone())
    return dict(_operands(context, layer.spec, x, w, g))


def _operands(context: Context, spec: LinearSpec, x: Tensor, w: Tensor, g: Tensor) -> Iterator[tuple[str, Operand]]:
    wide = {"fwd.x": x, "fwd.w": w, "dgrad.g": g, "dgrad.w": w.mT, "wgrad.g": g.mT, "wgrad.x": x.mT}
    first: dict[str, Tensor | Codes] = {}
    for label in OPERANDS:
        tensor, source = label[-1], wide[label]
        result_of, narrow = context.operand(spec, label, source, first.get(tensor))
        result = tensor_of(narrow)
        reuses = isinstance(spec.operand(label), Reuse)
        count = source.shape[1]
        first.setdefault(tensor, (narrow.columns(count) if isinstance(narrow, Codes) else narrow[:, :count]).mT)
        yield label, Operand(source if reuses else result_of, spec.cast(label), result, reuses)
