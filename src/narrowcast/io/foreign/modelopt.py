"""ModelOpt's NVFP4 and FP8 layouts.

NVFP4: ``weight`` uint8 ``[N, K / 2]`` (even column in the low nibble), ``weight_scale`` float8_e4m3fn ``[N, K / 16]``,
``weight_scale_2`` and ``input_scale`` float32: amax / (6 * 448), which multiply.
FP8: ``weight`` float8_e4m3fn, ``weight_scale`` and ``input_scale`` float32, amax / 448.
"""

from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.compressed.formats import FORMATS
from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.quantize import cast

_NVFP4 = {
    "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
}  # fmt: skip
_FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor"}


def open_modelopt(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read a ModelOpt checkpoint, or None where it is none.

    ``config`` is config.json's ``quantization_config`` or the ``quantization`` of hf_quant_config.json.
    """
    if config.get("quant_method") != "modelopt" and "quant_algo" not in config:
        return None
    algorithm = str(config.get("quant_algo", "")).upper()
    if algorithm == "NVFP4":
        needed = ("weight", "weight_scale", "weight_scale_2")
        formats = "e2m1fn in groups of 16 under e4m3fn and float32"
        return Reader("ModelOpt NVFP4", formats, (*needed, "input_scale"), needed, _nvfp4)
    if algorithm == "FP8":
        needed_fp8 = ("weight", "weight_scale")
        return Reader("ModelOpt FP8", "e4m3fn, one scale a tensor", (*needed_fp8, "input_scale"), needed_fp8, _fp8)
    raise InputError(f"ModelOpt checkpoint of quant_algo {algorithm!r}: expected NVFP4 or FP8")


def _nvfp4(module: str, parts: dict[str, Tensor]) -> ReadWeight:
    if parts["weight"].dtype != torch.uint8:
        raise InputError(f"{module}.weight: dtype {parts['weight'].dtype}, expected uint8 (two codes a byte)")
    whole = parts["weight_scale_2"].double().reshape(1)
    named = {
        "weight_packed": parts["weight"],
        "weight_scale": parts["weight_scale"],
        "weight_global_scale": whole.reciprocal(),
    }
    q = FORMATS["nvfp4-pack-quantized"].read(named, _NVFP4)
    if "input_scale" not in parts:
        return ReadWeight(q)
    scale = float(parts["input_scale"].float().max())
    return ReadWeight(q, activation=cast(f"e2m1fn/1x16/e4m3fn+divide-bfloat16-fixed{scale!r}"))


def _fp8(module: str, parts: dict[str, Tensor]) -> ReadWeight:
    named = {"weight": parts["weight"], "weight_scale": parts["weight_scale"].reshape(1)}
    q = FORMATS["float-quantized"].read(named, _FP8)
    if "input_scale" not in parts:
        return ReadWeight(q)
    return ReadWeight(q, activation=cast(f"e4m3fn/tensor/divide-fp32-fixed{float(parts['input_scale'].max())!r}"))
