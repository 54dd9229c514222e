"""bitsandbytes' 4-bit layout: NF4 or FP4 in blocks of the flattened weight, the first element in the high nibble.

Tensors of a module: ``weight`` uint8 ``[n / 2, 1]``, ``weight.absmax`` per block, ``weight.quant_map`` (the 16 values),
and ``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``), a JSON text in bytes: shape, blocksize, dtype. Under double
quantization ``absmax`` is uint8 too: an index into ``weight.nested_quant_map``, times ``weight.nested_absmax`` of its
block of 256, plus ``nested_offset``.
"""

import json
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.foreign.reader import Reader, ReadWeight

_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
_SUFFIXES = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", *_STATES)


def open_bitsandbytes(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read a bitsandbytes 4-bit checkpoint, or None where it is none."""
    if config.get("quant_method") != "bitsandbytes" and not config.get("load_in_4bit"):
        return None
    if config.get("load_in_8bit") or not config.get("load_in_4bit", True):
        raise InputError("bitsandbytes checkpoint of 8 bits (LLM.int8): expected its 4-bit layout")
    double = ", scales quantized to 8 bits again" if config.get("bnb_4bit_use_double_quant") else ""
    kind = config.get("bnb_4bit_quant_type", "fp4")
    formats = f"{kind} in blocks of the flattened weight{double}"
    return Reader("bitsandbytes 4-bit", formats, _SUFFIXES, ("weight", "weight.absmax", "weight.quant_map"), _read)


def _read(module: str, parts: dict[str, Tensor]) -> ReadWeight:
    text = next((parts[s] for s in _STATES if s in parts), None)
    if text is None:
        raise InputError(f"{module}.weight: has no quant_state.bitsandbytes__nf4 or __fp4; it is incomplete")
    try:
        state = json.loads(bytes(text.tolist()))
        shape, blocksize = [int(n) for n in state["shape"]], int(state["blocksize"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{module}.weight: its quant_state cannot be read ({error})") from None
    packed = parts["weight"].flatten().int()
    count = int(torch.Size(shape).numel())
    if len(packed) != -(-count // 2):
        raise InputError(f"{module}.weight: {len(packed)} bytes of codes, expected {-(-count // 2)} for shape {shape}")
    codes = torch.stack((packed >> 4, packed & 15), -1).flatten()[:count]
    values = parts["weight.quant_map"].float()[codes]
    absmax = _absmax(module, parts, state)
    block = torch.arange(count) // blocksize
    if len(absmax) <= int(block[-1]):
        raise InputError(f"{module}.weight: {len(absmax)} scales, expected {int(block[-1]) + 1}")
    return ReadWeight(dense=(values * absmax[block]).view(shape))


def _absmax(module: str, parts: dict[str, Tensor], state: dict[str, Any]) -> Tensor:
    absmax = parts["weight.absmax"]
    if absmax.dtype != torch.uint8:
        return absmax.float()
    if "weight.nested_absmax" not in parts or "weight.nested_quant_map" not in parts:
        raise InputError(f"{module}.weight: its scales are quantized, but nested_absmax or nested_quant_map is missing")
    outer = parts["weight.nested_absmax"].float()
    block = torch.arange(len(absmax)) // int(state.get("nested_blocksize", 256))
    inner = parts["weight.nested_quant_map"].float()[absmax.int()]
    return inner * outer[block] + float(state.get("nested_offset", 0.0))
