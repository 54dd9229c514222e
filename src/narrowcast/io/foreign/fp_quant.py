"""FP-Quant's layout (Egiazarian et al. 2025, MR-GPTQ): 4-bit floats of rotated weights; inputs are rotated at run time.

Tensors of a module: ``qweight`` uint8 ``[N, K / 2]`` (even column in the low nibble), ``scales`` uint8 (codes of e4m3fn
for NVFP4, of e8m0 for MXFP4), ``weight_global_scale`` and ``act_global_scale``, which block scales are divided by, and
``forward_hadamard_matrix`` ``[g, g]``, the rotation of each g columns. MXFP4 has the global scale 3: its steps are 4/3
of a power of two that is stored four times too large. With ``pseudoquantization`` there is one tensor of plain numbers,
``dqweight``, rotated likewise. It is not written here: `transformers` loads it on GPUs alone, and vLLM has given it up.
Source: sheet 42; FP-Quant 0.3.2, ``module/linear.py``, and its Triton kernels for the order of operations.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.packing import unpack
from narrowcast.io.compressed.formats import FORMATS, restored
from narrowcast.io.foreign.reader import Reader, ReadWeight, shaped
from narrowcast.quantize import cast
from narrowcast.transforms import Hadamard

_GROUP = {"nvfp4": 16, "mxfp4": 32}
_NVFP4 = {
    "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
}  # fmt: skip
_MXFP4 = cast("e2m1fn/1x32/e8m0-four-thirds")
_SHIFT = 3.0  # MXFP4's global scale
_BESIDE = ("weight_global_scale", "act_global_scale", "forward_hadamard_matrix", "backward_hadamard_matrix")


def open_fp_quant(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read an FP-Quant checkpoint, or None where it is none."""
    if config.get("quant_method") != "fp_quant":
        return None
    dtype, method = config.get("forward_dtype", "nvfp4"), config.get("forward_method", "abs_max")
    if dtype not in _GROUP or method != "abs_max" or config.get("store_master_weights"):
        raise InputError(
            f"FP-Quant checkpoint of {dtype} by {method}, master weights "
            f"{'stored' if config.get('store_master_weights') else 'not stored'}: expected nvfp4 or mxfp4 by abs_max, "
            "without master weights"
        )
    codes = ("dqweight",) if config.get("pseudoquantization") else ("qweight", "scales")
    scales = "e4m3fn and one float" if dtype == "nvfp4" else "e8m0, times 4/3"
    formats = f"e2m1fn in groups of {_GROUP[dtype]} under {scales}, inputs alike, both rotated"
    return Reader(f"FP-Quant {dtype}", formats, (*codes, *_BESIDE), (*codes, *_BESIDE[:3]), partial(_read, dtype))


def _read(dtype: str, module: str, parts: dict[str, Tensor]) -> ReadWeight:
    turn = _rotation(module, parts["forward_hadamard_matrix"])
    own, given = (float(parts[f"{side}_global_scale"].float().reshape(())) for side in ("weight", "act"))
    for what, scale in (("weight", own), ("act", given)):
        if not 0 < scale < float("inf") or (dtype == "mxfp4" and scale != _SHIFT):
            expected = "3" if dtype == "mxfp4" else "a finite scale above 0"
            raise InputError(f"{module}.{what}_global_scale: expected {expected}, found {scale}")
    activation = _MXFP4 if dtype == "mxfp4" else cast(f"e2m1fn/1x16/e4m3fn+divide-fp32-fixed{1 / given!r}")
    if "dqweight" in parts:
        return ReadWeight(dense=parts["dqweight"].float(), activation=activation, transform=turn)
    rows, columns = int(parts["qweight"].shape[0]), 2 * int(parts["qweight"].shape[1])
    shaped(parts["scales"], (rows, columns // _GROUP[dtype]), f"{module}.scales")
    if parts["qweight"].dtype != torch.uint8 or parts["scales"].dtype != torch.uint8:
        raise InputError(
            f"{module}: codes and scales of {parts['qweight'].dtype}, {parts['scales'].dtype}; expected uint8"
        )
    if dtype == "nvfp4":
        named = {
            "weight_packed": parts["qweight"],
            "weight_scale": parts["scales"].view(torch.float8_e4m3fn),
            "weight_global_scale": torch.tensor([own]),
        }
        return ReadWeight(FORMATS["nvfp4-pack-quantized"].read(named, _NVFP4), activation=activation, transform=turn)
    if bool((parts["scales"] < 2).any()):
        raise InputError(f"{module}.scales: holds scales below 2**-125; the checkpoint is damaged")
    codes = unpack(parts["qweight"], 4, columns)
    made = restored(_MXFP4, codes, parts["scales"] - 2, None, torch.bfloat16)  # 2**E / 3 is 4/3 of 2**(E - 2)
    return ReadWeight(made, activation=activation, transform=turn)


def _rotation(module: str, matrix: Tensor) -> Hadamard | None:
    """Return the rotation that a stored matrix is, None for the identity."""
    size = int(matrix.shape[0])
    eye = torch.eye(size)
    shaped(matrix, (size, size), f"{module}.forward_hadamard_matrix")
    if torch.equal(matrix.float(), eye):
        return None
    if size & (size - 1) == 0 and size > 1:
        turn = Hadamard(size)
        if torch.equal(turn.forward(eye).to(matrix.dtype), matrix):
            return turn
    raise InputError(f"{module}.forward_hadamard_matrix: is no Hadamard matrix of Sylvester's; it cannot be read")
