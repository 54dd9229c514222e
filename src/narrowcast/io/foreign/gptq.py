"""GPTQ's layout (AutoGPTQ, GPTQModel): codes packed along K, zero points along N.

Tensors of a module: ``qweight`` int32 ``[K * bits / 32, N]``, ``qzeros`` int32 ``[G, N * bits / 32]``, ``scales``
``[G, N]``, and ``g_idx`` int32 ``[K]``, the group of each column. ``w[n, k] = scales[g, n] * (q[k, n] - zero[g, n])``.
Version 1 (``checkpoint_format`` ``gptq``, or none) stores every zero point less one; version 2 (``gptq_v2``) as it is.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Minifloat, format
from narrowcast.io.compressed.formats import plain
from narrowcast.io.compressed.words import from_words
from narrowcast.io.foreign.reader import Reader, ReadWeight, shaped
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import ROW, Narrow, Tile, Wide, ZeroPoint

_BITS = (2, 3, 4, 8)


def open_gptq(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read a GPTQ checkpoint, or None where it is none."""
    if config.get("quant_method") not in ("gptq", "gptqmodel"):
        return None
    bits, version = int(config.get("bits", 4)), config.get("checkpoint_format", "gptq")
    if bits not in _BITS or version not in ("gptq", "gptq_v2"):
        raise InputError(
            f"GPTQ checkpoint of {bits} bits in format {version!r}: expected {_BITS} bits in gptq or gptq_v2"
        )
    size = int(config.get("group_size", -1))
    groups = f"in groups of {size}" if size > 0 else "per row"
    formats = f"int{bits} {groups}, zero points {'stored less one' if version == 'gptq' else 'as they are'}"
    formats += ", columns in activation order" if config.get("desc_act") else ""
    layout = "GPTQ v1" if version == "gptq" else "GPTQ v2"
    read = partial(_read, bits=bits, add=int(version == "gptq"))
    return Reader(layout, formats, ("qweight", "qzeros", "scales", "g_idx"), ("qweight", "qzeros", "scales"), read)


def _read(module: str, parts: dict[str, Tensor], bits: int, add: int) -> ReadWeight:
    qweight, scales = parts["qweight"], parts["scales"]
    rows, columns = int(qweight.shape[1]), int(qweight.shape[0]) * 32 // bits
    groups = int(scales.shape[0])
    shaped(scales, (groups, rows), f"{module}.scales")
    codes = from_words(qweight.mT.contiguous(), bits, columns)  # [N, K]
    zeros = ((from_words(parts["qzeros"], bits, rows) + add) & ((1 << bits) - 1)).mT  # [N, G]
    if columns % groups:
        raise InputError(f"{module}: {groups} groups do not divide its K = {columns}")
    in_order = torch.arange(columns) // (columns // groups)
    index = parts["g_idx"].long() if "g_idx" in parts else in_order
    shaped(index, (columns,), f"{module}.g_idx")
    if torch.equal(index, in_order):
        return ReadWeight(grouped(codes, scales.mT, zeros, bits))
    difference = (codes - zeros[:, index]).float()
    return ReadWeight(dense=difference * scales.float().mT[:, index])


def grouped(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> QTensor:
    """Return the weight of offset-binary codes ``[N, K]`` under scales and zero points ``[N, G]``.

    Without zero points where all of them are the middle.
    """
    columns, groups = int(codes.shape[1]), int(scales.shape[1])
    carrier = format(dtype_name(scales.dtype))
    assert isinstance(carrier, Minifloat)
    rule = Wide() if scales.dtype == torch.float32 else Narrow(carrier)
    tile = ROW if groups == 1 else Tile(1, columns // groups)
    middle = 1 << (bits - 1)
    own = not bool((zeros == middle).all())
    cast = Cast(format(f"int{bits}_full"), tile, ZeroPoint(rule, bits) if own else rule)
    return plain(cast, codes.int() ^ middle, scales.contiguous(), zeros - middle if own else None)
