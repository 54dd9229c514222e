"""FlashAttention-4 (CuTe DSL, the package flash-attn-4) as two torch operations: its forward and backward pass.

    q [B, T, H, D], k v [B, S, G, D]  ->  out [B, T, H, D], lse [B, H, T]

Tokens come before heads, as its kernels want them; any strides with the last one 1. The package compiles a kernel when
it is first called (2 seconds each on one core). What this file calls are the two functions that torch's own
`torch.nn.attention.activate_flash_attention_impl("FA4")` calls; they are private, so one version of the package is
taken (`VERSION`) and no other.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import CheckFailed
from narrowcast.names import dtype_name

PACKAGE, VERSION = "flash-attn-4", "4.0.0b36"
_REMEDY = "pip install narrowcast[hopper]"


@cache
def absent() -> str | None:
    """Return why the package cannot be used here, or None where it can. Nothing is imported."""
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        return f"{PACKAGE} is not installed; {_REMEDY}"
    return None if found == VERSION else f"{PACKAGE} is {found}, expected {VERSION}; {_REMEDY}"


def flash4(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, repeatable: bool) -> Tensor:
    """Return attention ``[B, T, H, D]`` of ``q [B, T, H, D]`` on ``k`` and ``v`` ``[B, S, G, D]``, H a multiple of G.

    Args:
        q, k, v: bfloat16 or float16 on one CUDA device.
        causal: query t sees the keys up to t + S - T.
        scale: of the scores.
        repeatable: whether the backward pass adds in a fixed order, so that it repeats itself bit for bit.
    """
    out: Tensor = torch.ops.narrowcast.flash4(q, k, v, causal, scale, repeatable)[0]
    return out


@cache
def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flash_attn.cute import interface
    return interface


@contextmanager
def _named(what: str, q: Tensor, k: Tensor) -> Iterator[None]:
    """Name the kernel and the shapes where it cannot be compiled or run; it is never replaced in silence."""
    try:
        with torch.cuda.device_of(q), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, on its argument types
            yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's errors share no class
        line = str(error).strip().splitlines() or [type(error).__name__]
        kind = dtype_name(q.dtype)
        raise CheckFailed(
            f"kernel flash4 {what}, {kind} {list(q.shape)} on {list(k.shape)}: {PACKAGE} {VERSION} refused it: "
            f"{line[-1].strip()}; --attention flash does without it"
        ) from error


@torch.library.custom_op("narrowcast::flash4", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, repeatable: bool) -> tuple[Tensor, Tensor]:
    with _named("forward", q, k):
        out, lse, *_ = _package()._flash_attn_fwd(q, k, v, softmax_scale=scale, causal=causal, return_lse=True)
    return out, lse


@_forward.register_fake
def _(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _size = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=torch.float32)


@torch.library.custom_op("narrowcast::flash4_backward", mutates_args=())
def _backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    repeatable: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    with _named("backward", q, k):
        _package()._flash_attn_bwd(
            q, k, v, out, g, lse, softmax_scale=scale, causal=causal, deterministic=repeatable, dq=dq, dk=dk, dv=dv
        )
    return dq, dk, dv


@_backward.register_fake
def _(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.how = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    made = torch.ops.narrowcast.flash4_backward(g, q, k, v, out, lse, *ctx.how)
    return (*made, None, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)
