"""The fp8 layout of DeepSeek-V3 and transformers' ``fp8``: E4M3 in blocks of 128x128.

Tensors of a module: ``weight`` float8_e4m3fn ``[N, K]`` and ``weight_scale_inv`` float32
``[ceil(N / 128), ceil(K / 128)]``, which despite its name multiplies. Inputs are quantized 1x128 at run time.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.compressed.formats import FORMATS
from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.quantize import cast


def open_fp8(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read such a checkpoint, or None where it is none."""
    if config.get("quant_method") != "fp8":
        return None
    size = config.get("weight_block_size")
    if not (isinstance(size, list) and len(size) == 2):
        raise InputError(f"fp8 checkpoint with weight_block_size {size}: expected [rows, columns], e.g. [128, 128]")
    if config.get("activation_scheme", "dynamic") != "dynamic":
        raise InputError(f"fp8 checkpoint with activation_scheme {config['activation_scheme']!r}: expected 'dynamic'")
    formats = f"e4m3fn in blocks of {size[0]}x{size[1]}, inputs e4m3fn 1x{size[1]}"
    args = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": size}
    needed = ("weight", "weight_scale_inv")
    return Reader("fp8 (DeepSeek)", formats, needed, needed, partial(_read, args=args))


def _read(module: str, parts: dict[str, Tensor], args: dict[str, Any]) -> ReadWeight:
    weight, scale = parts["weight"], parts["weight_scale_inv"]
    if weight.dtype != torch.float8_e4m3fn:
        raise InputError(f"{module}.weight: dtype {weight.dtype}, expected float8_e4m3fn")
    try:
        q = FORMATS["float-quantized"].read({"weight": weight, "weight_scale": scale}, args)
    except InputError as error:
        raise InputError(f"{module}.weight: {error}") from None
    return ReadWeight(q, activation=cast(f"e4m3fn/1x{args['block_structure'][1]}/fp32"))
