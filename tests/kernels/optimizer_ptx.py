"""Compile the optimizer step for an H100 that need not be here; print {optimizer: [PTX, bytes of local memory]}."""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from narrowcast.kernels import optimizer as kernel
from narrowcast.kernels.kept_facts import kept_facts
from narrowcast.optim import method

NAMES = ("fp8-adam", "fp8-adam-blocks", "fp8-adam-expanded")
POINTERS = {"head": "*i64", "table": "*i64", "map_ptr": "*i32", "maxima_ptr": "*i32", "old_ptr": "*fp32"}


def compiled(states: str, groups: int = 8, warps: int = 4) -> list[object]:
    """Return the PTX of a step of bfloat16 parameters, and the local memory of one thread."""
    storages = method(states).storages.values()
    facts = [kept_facts(s, torch.bfloat16 if i == 0 else None) for i, s in enumerate(storages)]
    layout = kernel.StepLayout(groups, True, True, "bfloat16", "bfloat16")
    constant = {"W": facts[0], "M": facts[1], "V": facts[2], "L": layout, "MAXIMA": False}
    names = kernel.step_kernel.arg_names
    signature = {name: "constexpr" if name in constant else POINTERS.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in POINTERS}
    values = {(names.index(name),): value for name, value in constant.items()}
    source = ASTSource(kernel.step_kernel, signature, values, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    asm = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    return [asm["ptx"], asm["ptx"].count(".local")]


if __name__ == "__main__":
    print(json.dumps({name: compiled(name) for name in NAMES}))
