"""What makes a tensor, and both orientations of its codes: the plain definition of what kernels do in one pass or two.

Each is the wide operation of `passes.wide` followed by `quantize_both`; the wide result itself is not kept. Further
arguments (``stream``, ``across_stream``, ``history``, ``what``) are those of `quantize_both`. Matrices are ``[M, K]``.
"""

from typing import Unpack

import torch
from torch import Tensor

from narrowcast.passes import wide
from narrowcast.passes.both import How, Two, quantize_both
from narrowcast.quantize import Cast


def stacked_both(x: Tensor, y: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return both orientations of ``x`` ``[M, K]`` above ``y`` of the same shape, as one matrix ``[2 M, K]``."""
    return quantize_both(torch.cat([x, y]), cast, across, **how)


def rms_norm_both(
    x: Tensor, weight: Tensor, eps: float, cast: Cast, across: Cast | None = None, **how: Unpack[How]
) -> tuple[Two, Tensor]:
    """Return (both orientations of RMSNorm's result, 1 / rms float32 ``[M, 1]``, which the backward pass takes)."""
    y, inverse = wide.rms_norm(x, weight, eps)
    return quantize_both(y, cast, across, **how), inverse


def add_rms_norm_both(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, cast: Cast, across: Cast | None = None, **how: Unpack[How]
) -> tuple[Tensor, Two, Tensor]:
    """Return (x + delta in the dtype of ``x``, both orientations of the norm of that, 1 / rms)."""
    total, y, inverse = wide.add_rms_norm(x, delta, weight, eps)
    return total, quantize_both(y, cast, across, **how), inverse


def rms_norm_backward_both(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
    also: Tensor | None,
    cast: Cast,
    across: Cast | None = None,
    **how: Unpack[How],
) -> tuple[Tensor, Tensor, Two]:
    """Return (gradient of x, of the weight; both orientations of the former, which the gemm before takes next).

    ``also``: the gradient of the residual stream, added (`wide.rms_norm_backward`), or None.
    """
    dx, dw = wide.rms_norm_backward(g, x, weight, inverse, also)
    return dx, dw, quantize_both(dx, cast, across, **how)


def swiglu_both(
    gate: Tensor,
    up: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    scale: Tensor | None = None,
    **how: Unpack[How],
) -> Two:
    """Return both orientations of ``gate * sigmoid(gate) * up``; of Smooth-SwiGLU with ``scale = smooth_scale(up)``.

    ``gate`` and ``up`` may be the halves of one matrix (views).
    """
    return quantize_both(wide.swiglu(gate, up, scale), cast, across, **how)


def swiglu_backward_both(
    g: Tensor,
    gate: Tensor,
    up: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    scale: Tensor | None = None,
    **how: Unpack[How],
) -> Two:
    """Return both orientations of the gradients of ``gate`` and ``up`` side by side, ``[M, 2 F]``."""
    return quantize_both(wide.swiglu_backward(g, gate, up, scale), cast, across, **how)


def gelu_both(x: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return both orientations of GELU (tanh form)."""
    return quantize_both(wide.gelu(x), cast, across, **how)


def gelu_backward_both(g: Tensor, x: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return both orientations of the gradient of GELU's input."""
    return quantize_both(wide.gelu_backward(g, x), cast, across, **how)


smooth_scale = wide.smooth_scale
