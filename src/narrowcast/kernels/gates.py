"""Gradients of a gated unit whose branches are kept as codes, in one pass: the kernel twin of `passes.saved_gradients`.

Bytes moved for each element: the product's gradient, read, and written over by that of ``up``; that of ``gate``,
written; two codes, and their shares of two scales.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.formats import Minifloat
from narrowcast.kernels.produce import Producer, bits_as, made, rounded, wide
from narrowcast.kernels.rounding import bits_of, float_of
from narrowcast.names import dtype_name
from narrowcast.quantize import QTensor

BLOCK, WARPS = 2048, 8


@triton.jit
def branch(codes_ptr, scales_ptr, at, group, inside, M: tl.constexpr, BIAS: tl.constexpr, SOURCE: tl.constexpr):
    """Return what codes of a signed 8-bit minifloat with one NaN decode to, in the source's dtype: [groups, group]."""
    code = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32)
    magnitude = code & 0x7F
    power: tl.constexpr = 2.0 ** (127 - BIAS)
    value = float_of(magnitude << (23 - M)) * power  # subnormals too: float32's own become the format's
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    value = float_of(bits_of(value) | ((code & 0x80) << 24))
    scale = tl.load(scales_ptr + group, mask=inside, other=0).to(tl.int32)
    return rounded(value * float_of(scale << 16), SOURCE)


@triton.jit
def gates_kernel(
    g_ptr, gate_ptr, gate_scales_ptr, up_ptr, up_scales_ptr, d_gate_ptr, groups, M: tl.constexpr, BIAS: tl.constexpr,
    SOURCE: tl.constexpr, P: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of gate, and of up over the product's: GROUPS groups of SIZE elements under one scale."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)[:, None]
    inside, at = group < groups, group * SIZE + tl.arange(0, SIZE)[None, :]
    g = wide(tl.load(g_ptr + at, mask=inside, other=0), SOURCE)
    a = branch(gate_ptr, gate_scales_ptr, at, group, inside, M, BIAS, SOURCE)
    u = branch(up_ptr, up_scales_ptr, at, group, inside, M, BIAS, SOURCE)
    found = made(g, a, u, 1.0, 1.0, P, SOURCE)
    tl.store(d_gate_ptr + at, bits_as(found[0], SOURCE), mask=inside)
    tl.store(g_ptr + at, bits_as(found[1], SOURCE), mask=inside)


@torch.library.custom_op("narrowcast::gates_backward", mutates_args=("g",))
def gates_backward(
    g: Tensor, gate: Tensor, gate_scales: Tensor, up: Tensor, up_scales: Tensor, size: int, mantissa: int, bias: int
) -> Tensor:
    """Return the gradient of gate; ``g``, the product's, becomes that of up."""
    d_gate, groups = torch.empty_like(g), gate_scales.numel()
    with torch.cuda.device_of(g):
        gates_kernel[(triton.cdiv(groups * size, BLOCK),)](
            _bits(g),
            gate,
            gate_scales,
            up,
            up_scales,
            _bits(d_gate),
            groups,
            M=mantissa,
            BIAS=bias,
            SOURCE=dtype_name(g.dtype),
            P=Producer("swiglu-backward"),
            GROUPS=BLOCK // size,
            SIZE=size,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return d_gate


@gates_backward.register_fake
def _(g: Tensor, *_: object) -> Tensor:
    return torch.empty_like(g)


def saved_gradients(g: Tensor, gate: QTensor, up: QTensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return what `passes.saved_gradients` does; in compiled code the memory of ``g`` is used again.

    `support.no_gates` has said that there is a kernel.
    """
    assert scale is None
    assert isinstance(gate.cast.format, Minifloat)
    if g.numel() == 0:
        return torch.empty_like(g), torch.empty_like(g)
    d_up = g if torch.compiler.is_compiling() and g.is_contiguous() else g.clone(memory_format=torch.contiguous_format)
    scales = [q.scales.to(torch.int16) for q in (gate, up)]
    facts = (gate.cast.tile.cols, gate.cast.format.mantissa, gate.cast.format.bias)
    d_gate: Tensor = torch.ops.narrowcast.gates_backward(d_up, gate.codes, scales[0], up.codes, scales[1], *facts)
    return d_gate, d_up


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)
