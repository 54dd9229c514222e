"""Compile kernels for an H100 that need not be here; print {cast: [PTX, bytes of local memory]} as JSON."""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from narrowcast.kernels import gates as gates_kernel
from narrowcast.kernels import quantize as kernel
from narrowcast.kernels.launch import Matrix, knobs, layout
from narrowcast.kernels.produce import Producer
from narrowcast.quantize import cast

CASTS = ("mxfp4", "nvfp4", "e4m3fn/row/fp32/stochastic", "e4m3fn/1x32/e8m0/stochastic/hadamard32-fresh")
OPTIONAL = ("tensor_ptr", "amax_ptr", "whole_ptr", "flips_ptr", "step_ptr")


def compiled(spelling: str, shape: tuple[int, int] = (4096, 4096)) -> list[object]:
    """Return the PTX of a cast of bfloat16, and the local memory of one thread."""
    narrow, matrix = cast(spelling), Matrix.of(shape, shape)
    chosen = knobs(narrow, matrix)
    made = layout(narrow, matrix, torch.empty(shape, dtype=torch.bfloat16, device="meta"), chosen)[0]
    constant = {**kernel.constants(narrow, torch.device("meta")), "L": made, "tables": None}
    names = kernel.quantize_kernel.arg_names
    given = {
        "tensor_ptr": narrow.scale.tensor_bits,
        "whole_ptr": narrow.scale.tensor_bits,
        "flips_ptr": narrow.transform,
    }
    constant |= {name: None for name in OPTIONAL if not given.get(name)}
    scale = "*fp32" if str(narrow.scale) == "fp32" else "*u8"
    pointers = dict.fromkeys(("x_ptr", "codes_ptr", "whole_ptr", "flips_ptr"), "*i32") | {
        "scales_ptr": scale,
        "tensor_ptr": "*fp32",
    }
    signature = {name: "constexpr" if name in constant else pointers.get(name, "i32") for name in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, "cols", "padded_cols", "row_bytes")}
    values = {(names.index(name),): value for name, value in constant.items()}
    source = ASTSource(kernel.quantize_kernel, signature, values, {k: v for k, v in aligned.items() if k not in values})
    options = {"num_warps": chosen.warps, "enable_fp_fusion": False}
    compiled_ = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return [compiled_.asm["ptx"], compiled_.asm["ptx"].count(".local")]


def gates() -> str:
    """Return the PTX of the gradients of gates kept as codes."""
    constant = {"M": 3, "BIAS": 7, "SOURCE": "bfloat16", "P": Producer("swiglu-backward"), "GROUPS": 128, "SIZE": 16}
    kernel_, pointers = gates_kernel.gates_kernel, dict.fromkeys(("g_ptr", "d_gate_ptr"), "*i16")
    pointers |= {f"{x}_ptr": "*u8" for x in ("gate", "up")} | {f"{x}_scales_ptr": "*i16" for x in ("gate", "up")}
    names = kernel_.arg_names
    signature = {name: "constexpr" if name in constant else pointers.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, "groups")}
    source = ASTSource(kernel_, signature, {(names.index(name),): v for name, v in constant.items()}, aligned)
    options = {"num_warps": gates_kernel.WARPS, "enable_fp_fusion": False}
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


if __name__ == "__main__":
    print(json.dumps({spelling: compiled(spelling) for spelling in CASTS} | {"gates": gates()}))
