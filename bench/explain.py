"""Why a layer is faster, or is not: every linear layer of the training step by itself, its kernels timed.

Forward and backward of one layer on its own tokens, captured in a CUDA graph, beside the same layer in bfloat16. Not
compiled: maxima that the compiler joins to what made the tensor are passes of their own here.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from bench.gpu import captured, rounds, shares
from bench.step import Sizes
from torch import nn

import narrowcast as nc


def layers(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each linear layer of one block."""
    width, gated = sizes.width, sizes.gated
    small = width // sizes.heads * sizes.keys
    return {
        "q_proj": (width, width), "k_proj": (small, width), "v_proj": (small, width), "o_proj": (width, width),
        "gate_proj": (gated, width), "up_proj": (gated, width), "down_proj": (width, gated),
    }  # fmt: skip


def step_of(model: nn.Module, tokens: int, outputs: int, inputs: int) -> Callable[[], None]:
    """Return the replay of one forward and backward pass."""
    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn(tokens, outputs, device="cuda", dtype=torch.bfloat16) / x.numel() ** 0.5

    def step() -> None:
        model.zero_grad(set_to_none=True)
        x.grad = None
        model(x).backward(g)

    return captured(step, (model, x, g))


def explain(names: list[str], sizes: Sizes) -> list[dict[str, Any]]:
    """Measure every layer under every recipe; return and print a row for each, with the reason in words."""
    tokens, found = sizes.batch * sizes.context, []
    for layer, (outputs, inputs) in layers(sizes).items():
        work, gemms = {}, {}
        for name in ("bf16", *names):
            model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16))
            gemms[name] = {} if name == "bf16" else nc.convert(model, name).rows[0].gemms
            work[name] = step_of(model, tokens, outputs, inputs)
        times = {name: statistics.median(t) for name, t in rounds(work, 10).items()}
        parts = {name: shares(run) for name, run in work.items()}
        for name in names:
            row = {"layer": layer, "shape": [tokens, outputs, inputs], "recipe": name, "ms": times[name]}
            row |= {"over_bf16": times["bf16"] / times[name], "shares_ms": parts[name]}
            row["why"] = reason(gemms[name], parts["bf16"], parts[name])
            print(f"{layer:10s} {name:28s} {row['ms']:7.3f} ms  {row['over_bf16']:.2f}x  {row['why']}", flush=True)
            found.append(row)
    return found


def reason(gemms: dict[str, Any], wide: dict[str, float], ours: dict[str, float]) -> str:
    """Return in words why the layer is as fast as it is."""
    emulated = [f"{gemm} is emulated: {how['why']}" for gemm, how in gemms.items() if how["backend"] != "native"]
    if emulated:
        return "; ".join(emulated)
    faster = wide["gemm"] / ours["gemm"]
    saved, cost = wide["gemm"] - ours["gemm"], ours.get("cast", 0.0)
    verdict = "casts eat the gain" if cost > saved else f"casts take {cost / saved:.0%} of what the gemms save"
    return f"gemms {faster:.2f}x; {verdict}; other kernels {ours.get('elementwise', 0.0):.3f} ms"
