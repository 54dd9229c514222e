"""Gradients through a gated unit whose branches are kept as codes: the plain definition."""

from torch import Tensor

from narrowcast.passes.wide import swiglu_backward
from narrowcast.quantize import QTensor


def saved_gradients(g: Tensor, gate: QTensor, up: QTensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up ``[M, F]``: `swiglu_backward` of what their codes decode to.

    Args:
        g: gradient of the product, in the dtype of the branches.
        gate, up: what is kept of them.
        scale: of Smooth-SwiGLU, or None.
    """
    d_gate, d_up = swiglu_backward(g, gate.dequantize(), up.dequantize(), scale).chunk(2, dim=-1)
    return d_gate, d_up
