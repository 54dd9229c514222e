"""The operations that sum products, with an accumulator of choice in place of the library's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.accumulate import Accumulator

Round = Callable[[Tensor], Tensor]
Sum = Callable[[Mapping[str, Any], Accumulator, Round], Tensor | None]


def _scaled(product: Tensor, bias: Tensor, arguments: Mapping[str, Any], rounded: Round) -> Tensor:
    """``beta * bias + alpha * product``: the sum leaves its accumulator (rounded), the rest is one more operation."""
    alpha, beta = arguments.get("alpha", 1), arguments.get("beta", 1)
    total: Tensor = rounded(product).double() * alpha
    return total + beta * bias.double() if beta else total


def _mm(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    return accumulator.matmul(x["self"], x["mat2"].mT)


def _addmm(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    return _scaled(accumulator.matmul(x["mat1"], x["mat2"].mT), x["self"], x, rounded)


def _baddbmm(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    return _scaled(accumulator.matmul(x["batch1"], x["batch2"].mT), x["self"], x, rounded)


def _mv(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    return accumulator.matmul(x["self"], x["vec"][None]).squeeze(-1)


def _addmv(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    return _scaled(accumulator.matmul(x["mat"], x["vec"][None]).squeeze(-1), x["self"], x, rounded)


def _dot(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor:
    other = x["tensor"] if "tensor" in x else x["other"]
    return accumulator.matmul(x["self"][None], other[None])[0, 0]


def _sum(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor | None:
    """A sum is a product with ones; the summed axes are taken row-major, in the order of the tensor."""
    source: Tensor = x["self"]
    if x.get("dtype") not in (None, source.dtype) or not source.dim():
        return None
    wanted = x.get("dim")
    axes = sorted(d % source.dim() for d in ([wanted] if isinstance(wanted, int) else wanted or range(source.dim())))
    kept = [d for d in range(source.dim()) if d not in axes]
    rows = source.permute(*kept, *axes).reshape(-1, source.numel() // max(1, _count(source, kept)))
    total = accumulator.matmul(rows, rows.new_ones(1, rows.shape[-1])).view([source.shape[d] for d in kept])
    for axis in axes if x.get("keepdim", False) else ():
        total = total.unsqueeze(axis)
    return total


def _count(source: Tensor, axes: list[int]) -> int:
    return int(torch.Size([source.shape[d] for d in axes]).numel())


def _mean(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor | None:
    """The sum leaves its accumulator (rounded); the division is one more operation."""
    total = _sum(x, accumulator, rounded)
    return None if total is None else rounded(total).double() / (x["self"].numel() / max(1, total.numel()))


def _convolution(x: Mapping[str, Any], accumulator: Accumulator, rounded: Round) -> Tensor | None:
    """A plain two-dimensional convolution as a matrix product over unfolded patches; others are None."""
    source, weight, bias = x["input"], x["weight"], x["bias"]
    if x["transposed"] or source.dim() != 4 or weight.dim() != 4:
        return None
    groups, kernel = x["groups"], tuple(weight.shape[2:])
    patches = F.unfold(source, kernel, x["dilation"], x["padding"], x["stride"])
    patches = patches.unflatten(1, (groups, -1)).mT  # [N, groups, L, C / groups * kernel]
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    total: Tensor = accumulator.matmul(filters, patches).flatten(1, 2)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(source.shape[2:], x["padding"], x["dilation"], kernel, x["stride"], strict=True)
    ]
    total = total.unflatten(-1, size)
    return total if bias is None else rounded(total).double() + bias.double()[:, None, None]


#: base names of the operations whose inner sums an accumulator replaces
SUMS: dict[str, Sum] = {
    "mm": _mm, "bmm": _mm, "addmm": _addmm, "baddbmm": _baddbmm, "mv": _mv, "addmv": _addmv, "dot": _dot, "vdot": _dot,
    "sum": _sum, "mean": _mean, "convolution": _convolution,
}  # fmt: skip
_LIBRARY_SUMS = """
    convolution_backward cumsum cumsum_ embedding_dense_backward index_add index_add_ scatter_add scatter_add_
    logsumexp linalg_vector_norm native_batch_norm native_batch_norm_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward norm prod std var var_mean
    _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
    avg_pool2d avg_pool2d_backward _adaptive_avg_pool2d
"""
#: and of those that sum too, but by the library
LIBRARY_SUMS = frozenset(_LIBRARY_SUMS.split())
