"""A training step on a GPU beside its peers: four Llama-8B layers, forward and backward, compiled, in one run.

    python bench/run.py train_gpu [--recipes fp8-tensorwise,...] [--peers ...] [--attention ...] [--explain]
                                  [--name NAME] [--out DIR]

Layers of 4096 wide, 14336 in the gated unit, 32 heads and 8 of keys, 4 x 4096 tokens, bfloat16, weights included.
Attention is the same in every variant, bf16 and peers too: the fastest of those that can run here (cuDNN,
FlashAttention-2, FlashAttention-4 where it is installed), all measured first in the same run. Variants are interleaved,
each captured in a CUDA graph (``--launched``: not), so that no variant waits for the processor; a figure is the median
over rounds of four steps, of milliseconds a step and of the ratio to bf16 in the same round.
Memory is what one step without a graph allocates at its peak, and the weights: gradients, what is saved, workspace, no
inputs. Then one profile of each says where its time goes. ``RECIPE@hopper-fp8`` sums as torchao's row scales do: fast,
without promotion. Writes bench/results/NAME.json (train-cuda).
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench.attention_gpu import Shape, fastest, measure
from bench.explain import explain
from bench.gpu import captured, peak, ratio, rounds, shares, slowest
from bench.step import SIZES, Sizes, variant
from torch import Tensor, nn

from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import versions

WRONG = 0.5  # `distance` of an output or a gradient from bf16's that no rounding explains
RESULTS = Path(__file__).parent / "results"
RECIPES = (
    "fp8-tensorwise,fp8-tensorwise@hopper-fp8+joined,fp8-delayed@hopper-fp8+joined,fp8-static@hopper-fp8+joined,"
    "fp8-smooth-swiglu+joined,fp8-rowwise,fp8-rowwise@hopper-fp8+joined,fp8-block+joined,fp8-hybrid,fp8-coat"
)
STEPS = 4  # one after the other, as training takes them
PEERS = "tensorwise,rowwise,rowwise_with_gw_hp"


def memory(step: Callable[[], Any], model: nn.Module) -> float:
    """Return GiB that a step allocates at its peak, and its weights."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    most = peak(step) - before + sum(p.nbytes for p in model.parameters())
    model.zero_grad(set_to_none=True)
    return most / 2**30


def attention(sizes: Sizes, asked: str) -> dict[str, Any]:
    """Return which kernel runs attention in every variant, and the times of all that can, forward and backward."""
    size = sizes.width // sizes.heads
    shape = Shape("the training step's", sizes.batch, sizes.heads, sizes.keys, sizes.context, size)
    found = measure(shape, False, 8)
    kind = fastest(found) if asked == "auto" else asked
    if "absent" in found.get(kind, {}):
        raise InputError(f"--attention {kind}: {found[kind]['absent']}")
    for name, at in found.items():
        print(f"attention {name}: {at.get('absent') or ', '.join(f'{k} {v:.3f}' for k, v in at.items())}", flush=True)
    print(f"attention of all variants: {kind}", flush=True)
    return {"kind": kind, "asked": asked, "kernels": found}


def distance(x: Tensor, reference: Tensor) -> float:
    """Return how far ``x`` lies from a multiple of ``reference``; weights of unit variance have other gradients."""
    dot = float((x * reference).sum())
    return max(1.0 - dot * dot / float(x.square().sum() * reference.square().sum()), 0.0) ** 0.5


def build(names: list[str], sizes: Sizes, attention: str, compiled: bool, launched: bool) -> dict[str, Any]:
    """Return {name: (step, row)}; the row has memory, kernels, the distance of the output from bf16's.

    A variant whose output or gradients are not bf16's has no step: there is nothing to time.
    """
    found: dict[str, Any] = {}
    pool = torch.cuda.graph_pool_handle()
    reference: list[Tensor] | None = None
    for name in names:
        model, step, gemms = variant(name, sizes, attention, compiled)
        start = time.perf_counter()
        made_now = step()
        torch.cuda.synchronize()
        row: dict[str, Any] = {"kernels": gemms, "first_step_s": time.perf_counter() - start}
        reference = [t.float() for t in made_now] if reference is None else reference
        row["errors"] = [distance(t.float(), r) for t, r in zip(made_now, reference, strict=True)]
        del made_now
        print(f"{name}: {row['first_step_s']:.0f} s, distances {[f'{e:.3f}' for e in row['errors']]}", flush=True)
        if not max(row["errors"]) <= WRONG:
            found[name] = (None, row)
            continue
        step()
        row["peak_gib"] = memory(step, model)
        found[name] = (step if launched else captured(step, model, pool), row)  # one pool: one after the other
        model.zero_grad(set_to_none=True)
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--peers", default=PEERS)
    parser.add_argument("--attention", default="auto", choices=("auto", "cudnn", "flash", "flash4"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=SIZES.layers)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--explain", action="store_true", help="say for each layer why it is faster or is not")
    parser.add_argument("--launched", action="store_true", help="kernel by kernel, without CUDA graphs")
    parser.add_argument("--kernels", default="", help="variants whose slowest kernels are printed")
    parser.add_argument("--name", default="train-cuda", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch._dynamo.config.recompile_limit = 64  # one per variant
    sizes = replace(SIZES, layers=options.layers)
    recipes = [n for n in options.recipes.split(",") if n]
    names = ["bf16", *recipes, *(f"torchao {n}" for n in options.peers.split(",") if n)]
    runs = attention(sizes, options.attention)
    built = build(names, sizes, runs["kind"], not options.eager, options.launched)
    variants = {name: pair for name, pair in built.items() if pair[0] is not None}
    times = rounds({name: step for name, (step, _) in variants.items()}, options.rounds, times=STEPS)
    rows = {}
    for name, (step, row) in variants.items():
        row |= {"ms": statistics.median(times[name]), "over_bf16": ratio(times["bf16"], times[name])}
        row["memory_over_bf16"] = variants["bf16"][1]["peak_gib"] / row["peak_gib"]
        row["shares_ms"] = shares(step)
        rows[name] = row
        parts = ", ".join(f"{k} {v:.1f}" for k, v in sorted(row["shares_ms"].items(), key=lambda kv: -kv[1]))
        print(
            f"{name:28s} {row['ms']:7.2f} ms  {row['over_bf16']:.3f}x  {row['peak_gib']:.2f} GiB "
            f"{row['memory_over_bf16']:.2f}x  {parts}",
            flush=True,
        )
        if name in options.kernels.split(","):
            for kernel, ms, count in slowest(step):
                print(f"      {ms:8.2f} ms {count:5d}  {kernel}")
    result = {
        "machine": versions(),
        "sizes": asdict(sizes),
        "compiled": not options.eager,
        "graphs": not options.launched,
        "rounds": options.rounds,
        "steps_a_round": STEPS,
        "attention": runs,
        "variants": rows,
        "wrong": {name: row for name, (step, row) in built.items() if step is None},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write = (options.out / f"{options.name}.json").write_text
    write(json.dumps(result, indent=1) + "\n")
    if options.explain:
        variants.clear()
        result["layers"] = explain([n for n in recipes if "joined" not in n], sizes)
        write(json.dumps(result, indent=1) + "\n")
    if result["wrong"]:
        raise CheckFailed(f"output or gradients are not bf16's, nothing was timed: {', '.join(result['wrong'])}")
