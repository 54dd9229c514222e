"""AWQ's layout (AutoAWQ, version "gemm"): 4-bit codes packed along N in an interleaved order.

Tensors of a module: ``qweight`` int32 ``[K, N / 8]``, ``qzeros`` int32 ``[G, N / 8]``, ``scales`` ``[G, N]``.
The eight nibbles of a word, lowest first, hold columns 0, 2, 4, 6, 1, 3, 5, 7 of the eight.
``w[n, k] = scales[g, n] * (q[k, n] - zero[g, n])``.
"""

from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.compressed.words import from_words
from narrowcast.io.foreign.gptq import grouped
from narrowcast.io.foreign.reader import Reader, ReadWeight, shaped

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def open_awq(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read an AWQ checkpoint, or None where it is none."""
    if config.get("quant_method") != "awq":
        return None
    bits = int(config.get("bits", config.get("w_bit", 4)))
    version = str(config.get("version", "gemm")).lower()
    if bits != 4 or version not in ("gemm", "gemv"):
        raise InputError(f"AWQ checkpoint of {bits} bits, version {version!r}: expected 4 bits, version gemm")
    if version != "gemm":
        raise InputError("AWQ checkpoint of version 'gemv': its packing is another; expected version gemm")
    size = int(config.get("group_size", config.get("q_group_size", 128)))
    formats = f"int4 {f'in groups of {size}' if size > 0 else 'per row'}, zero points, interleaved"
    return Reader("AWQ gemm", formats, ("qweight", "qzeros", "scales"), ("qweight", "qzeros", "scales"), _read)


def unpacked(words: Tensor) -> Tensor:
    """Return the codes ``[..., N]`` of words ``[..., N / 8]`` in the order of the columns."""
    nibbles = from_words(words, 4, words.shape[-1] * 8).unflatten(-1, (-1, 8))
    ordered: Tensor = nibbles[..., torch.tensor(ORDER).argsort()].flatten(-2)
    return ordered


def _read(module: str, parts: dict[str, Tensor]) -> ReadWeight:
    codes, zeros, scales = unpacked(parts["qweight"]).mT, unpacked(parts["qzeros"]).mT, parts["scales"]
    rows, columns = (int(n) for n in codes.shape)
    groups = int(scales.shape[0])
    shaped(scales, (groups, rows), f"{module}.scales")
    shaped(zeros, (rows, groups), f"{module}.qzeros")
    if columns % groups:
        raise InputError(f"{module}: {groups} groups do not divide its K = {columns}")
    return ReadWeight(grouped(codes.contiguous(), scales.mT, zeros, 4))
