"""The linear layer as three gemms with a cast for each of their six operands.

    y  = gemm(x,   w)       fwd      along in
    dx = gemm(g,   w.T)     dgrad    along out
    dw = gemm(g.T, x.T)     wgrad    along tokens

Random bits and amax histories live in buffers that advance by themselves when the backward pass has used them, so
that recomputation (activation checkpointing) sees what the forward pass saw, and a checkpoint resumes exactly.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.accumulate import Codes, tensor_of
from narrowcast.formats import Stream
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Gemm, Reuse, contraction_source, matmul
from narrowcast.quantize import Cast
from narrowcast.scaling import advance

_SIGNS = 8  # stream numbers of the shared transforms follow the six operands


@dataclass(frozen=True)
class Operand:
    """One prepared operand, for looking at: what went into the cast and what the gemm multiplies.

    ``source`` and ``result`` are float32 ``[rows, K]`` after padding and rotation.
    """

    source: Tensor
    cast: Cast
    result: Tensor
    reused: bool


@dataclass(frozen=True)
class _Context:
    """What a layer's casts need besides the tensors: name, keys of its random bits, step, histories."""

    site: str
    seed: int
    key: int
    step: Tensor | None
    history: Tensor | None

    def stream(self, number: int) -> Stream | None:
        """Return the stream of operand (or shared transform) ``number`` of this layer."""
        if self.step is None:
            return None
        return Stream(self.seed, self.key << 4 | number, self.step)

    def cast(self, gemm: Gemm, label: str, operand: Cast, x: Tensor, shared: int) -> tuple[Tensor, Tensor | Codes]:
        """Return (source after padding and rotation, result of the cast) for operand ``label``.

        The result is `Codes` where the gemm's accumulator works on them.
        """
        number = OPERANDS.index(label)
        what = f"layer {self.site!r}, operand {label}"
        source = contraction_source(gemm, x, self.stream(_SIGNS + shared), what)
        history = None
        if operand.scale.delayed is not None and self.history is not None:
            history = self.history[number, : operand.scale.delayed.length + 1]
        narrow = operand.split if gemm.accumulator.on_codes else operand.apply
        return source, narrow(source, self.stream(number), history, what)

    def operand(
        self, spec: LinearSpec, label: str, wide: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor | Codes]:
        """Return (source, result) of operand ``label``, from ``wide`` or, where it reuses, from ``first``."""
        position = OPERANDS.index(label) // 2
        gemm = (spec.fwd, spec.dgrad, spec.wgrad)[position]
        operand = spec.operand(label)
        if isinstance(operand, Cast):
            return self.cast(gemm, label, operand, wide, position)
        assert first is not None
        again = gemm.casts[OPERANDS.index(label) % 2]
        return self.cast(gemm, label, again, first, position)


class _Linear(torch.autograd.Function):
    """``y = x w^T`` with x ``[M, in]``, w ``[out, in]``; the product is float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, context: _Context, spec: LinearSpec) -> Tensor:
        xq = context.operand(spec, "fwd.x", x, None)[1]
        wq = context.operand(spec, "fwd.w", w, None)[1]
        kept_x = tensor_of(xq)[:, : x.shape[1]] if isinstance(spec.operand("wgrad.x"), Reuse) else x
        kept_w = tensor_of(wq)[:, : w.shape[1]] if isinstance(spec.operand("dgrad.w"), Reuse) else w
        step = context.step.clone() if context.step is not None else None
        ctx.save_for_backward(kept_x, kept_w, *([step] if step is not None else []))
        ctx.context, ctx.spec = context, spec
        return matmul(xq, wq, spec.fwd)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, w, *step = ctx.saved_tensors
        spec: LinearSpec = ctx.spec
        live: _Context = ctx.context
        context = replace(live, step=step[0]) if step else live
        dx = dw = None
        reuses_g = isinstance(spec.operand("wgrad.g"), Reuse)
        gq = context.operand(spec, "dgrad.g", g, None)[1] if ctx.needs_input_grad[0] or reuses_g else None
        if ctx.needs_input_grad[0]:
            assert gq is not None
            dx = matmul(gq, context.operand(spec, "dgrad.w", w.mT, w.mT)[1], spec.dgrad)
        if ctx.needs_input_grad[1]:
            first = tensor_of(gq)[:, : g.shape[1]].mT if gq is not None and reuses_g else None
            a = context.operand(spec, "wgrad.g", g.mT, first)[1]
            dw = matmul(a, context.operand(spec, "wgrad.x", x.mT, x.mT)[1], spec.wgrad)
        if live.step is not None:
            live.step.add_(1)
        if live.history is not None:
            advance(live.history)
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
    """

    step: Tensor | None
    history: Tensor | None

    def __init__(self, source: nn.Linear, spec: LinearSpec, site: str, seed: int = 0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight, self.bias = source.weight, source.bias
        self.spec, self.site, self.seed = spec, site, seed
        self.key = zlib.crc32(site.encode()) & 0x0FFFFFFF  # 28 bits: 4 more number the operands
        device = source.weight.device
        step = torch.zeros((), dtype=torch.int64, device=device) if spec.random else None
        history = torch.zeros(len(OPERANDS), spec.history + 1, device=device) if spec.history else None
        self.register_buffer("step", step)
        self.register_buffer("history", history)

    @property
    def context(self) -> _Context:
        """What the casts need besides the tensors."""
        return _Context(self.site, self.seed, self.key, self.step, self.history)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x w^T + bias`` for x ``[..., in_features]``."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, self.in_features)
            y: Tensor = _Linear.apply(flat, self.weight, self.context, self.spec)  # type: ignore[no-untyped-call]
            y = y.view(*x.shape[:-1], self.out_features)
            return (y + self.bias if self.bias is not None else y).to(dtype)

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


def _operands(context: _Context, spec: LinearSpec, x: Tensor, w: Tensor, g: Tensor) -> Iterator[tuple[str, Operand]]:
    wide = {"fwd.x": x, "fwd.w": w, "dgrad.g": g, "dgrad.w": w.mT, "wgrad.g": g.mT, "wgrad.x": x.mT}
    first: dict[str, Tensor] = {}
    for label in OPERANDS:
        tensor, source = label[-1], wide[label]
        result_of, narrow = context.operand(spec, label, source, first.get(tensor))
        result = tensor_of(narrow)
        reused = isinstance(spec.operand(label), Reuse)
        first.setdefault(tensor, result[:, : source.shape[1]].mT)
        yield label, Operand(source if reused else result_of, spec.cast(label), result, reused)
