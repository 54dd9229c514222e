"""A training step on a GPU beside its peers: four Llama-8B layers, forward and backward, compiled, in one run.

    python bench/run.py train_gpu [--recipes fp8-tensorwise,...] [--peers ...] [--attention ...] [--explain] [--out DIR]

Layers of 4096 wide, 14336 in the gated unit, 32 heads and 8 of keys, 4 x 4096 tokens, bfloat16, weights included.
Attention is the same in every variant, bf16 and peers too: the fastest of those that can run here (cuDNN,
FlashAttention-2, FlashAttention-4 where it is installed), all measured first in the same run. Variants are interleaved,
each captured in a CUDA graph (``--launched``: not), so that no variant waits for the processor; a figure is the median
over rounds of four steps, of milliseconds a step and of the ratio to bf16 in the same round.
Memory is what one step without a graph allocates at its peak, and the weights: gradients, what is saved, workspace, no
inputs. Then one profile of each says where its time goes. ``RECIPE@hopper-fp8`` sums as torchao's row scales do: fast,
without promotion. Writes bench/results/train-cuda.json.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.attention_gpu import Shape, fastest, measure
from bench.explain import explain
from bench.gpu import captured, peak, ratio, rounds, shares, slowest
from torch import Tensor, nn

import narrowcast as nc
from narrowcast.attend import attend
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import versions

WRONG = 0.5  # `distance` of an output or a gradient from bf16's that no rounding explains
RESULTS = Path(__file__).parent / "results"
WIDTH, GATED, HEADS, KEYS, LAYERS, BATCH, CONTEXT = 4096, 14336, 32, 8, 4, 4, 4096
RECIPES = (
    "fp8-tensorwise,fp8-tensorwise@hopper-fp8,fp8-delayed,fp8-rowwise,fp8-rowwise@hopper-fp8,fp8-rowwise@hopper-fp8+joined,"
    "fp8-block,fp8-block+joined,fp8-hybrid,fp8-static@hopper-fp8,fp8-static@hopper-fp8+joined,fp8-delayed+joined,"
    "fp8-smooth-swiglu,fp8-coat"
)
STEPS = 4  # one after the other, as training takes them
#: every variant's; or else a layer's buffers are kept for the next layer, through attention's backward pass
COMPILED = {"allow_buffer_reuse": False}
PEERS = "tensorwise,rowwise,rowwise_with_gw_hp"


class Block(nn.Module):
    """One Llama layer, plainly."""

    def __init__(self, width: int, gated: int, heads: int, keys: int, context: int, attention: str) -> None:
        super().__init__()
        self.heads, self.keys, self.size, self.attention = heads, keys, width // heads, attention
        small = keys * self.size
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, eps=1e-5) for _ in "ip")
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in "qo")
        self.k_proj, self.v_proj = (nn.Linear(width, small, bias=False) for _ in "kv")
        self.mlp = Gated(width, gated)
        angle = torch.arange(context)[:, None] / 5e5 ** (torch.arange(0, self.size, 2) / self.size)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.input_layernorm(x)
        shape = (*x.shape[:2], -1, self.size)
        q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(self.rotate(q), self.rotate(k), v, kind=self.attention)
        x = x + self.o_proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.post_attention_layernorm(x))


class Gated(nn.Module):
    """Llama's gated unit."""

    def __init__(self, width: int, gated: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, gated, bias=False) for _ in "gu")
        self.down_proj, self.act_fn = nn.Linear(gated, width, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def made(sizes: tuple[int, ...], device: str, attention: str) -> nn.Module:
    """Return the layers in bfloat16, the same weights each time."""
    width, gated, heads, keys, layers, _, context = sizes
    torch.manual_seed(0)
    with torch.device(device):
        model = nn.Sequential(*(Block(width, gated, heads, keys, context, attention) for _ in range(layers)))
    return model.to(torch.bfloat16)


def peer(model: nn.Module, name: str) -> None:
    """Convert by torchao."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name(name))


def step_of(model: nn.Module, sizes: tuple[int, ...], device: str, compiled: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Return one forward and backward pass, which returns output, gradient of the input, and of the first weight."""
    torch.manual_seed(1)
    x = torch.randn(sizes[5], sizes[6], sizes[0], device=device, dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn_like(x)  # what is scaled to be near one, as recipes without scales want it
    run = torch.compile(model, fullgraph=True, options=COMPILED) if compiled else model

    def step() -> tuple[Tensor, ...]:
        model.zero_grad(set_to_none=True)
        y = run(x)
        y.backward(g)
        gradient, x.grad = x.grad, None
        return y.detach(), gradient, model[0].q_proj.weight.grad

    return step


def memory(step: Callable[[], Any], model: nn.Module) -> float:
    """Return GiB that a step allocates at its peak, and its weights."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    most = peak(step) - before + sum(p.nbytes for p in model.parameters())
    model.zero_grad(set_to_none=True)
    return most / 2**30


def attention(sizes: tuple[int, ...], asked: str) -> dict[str, Any]:
    """Return which kernel runs attention in every variant, and the times of all that can, forward and backward."""
    width, _, heads, keys, _, batch, context = sizes
    found = measure(Shape("the training step's", batch, heads, keys, context, width // heads), False, 8)
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


def build(
    names: list[str],
    peers: list[str],
    sizes: tuple[int, ...],
    device: str,
    compiled: bool,
    launched: bool,
    attention: str,
) -> dict[str, Any]:
    """Return {name: (step, row)}; the row has memory, kernels, the distance of the output from bf16's."""
    found: dict[str, Any] = {}
    pool = torch.cuda.graph_pool_handle()
    reference: list[Tensor] | None = None
    for name in ["bf16", *names, *(f"torchao {p}" for p in peers)]:
        model = made(sizes, device, attention)
        row: dict[str, Any] = {}
        if name.startswith("torchao "):
            peer(model, name.removeprefix("torchao "))
        elif name != "bf16":
            report = nc.convert(model, name, backend="native")
            row["kernels"] = report.narrow[0].gemms
        step = step_of(model, sizes, device, compiled)
        start = time.perf_counter()
        made_now = step()
        torch.cuda.synchronize()
        row["first_step_s"] = time.perf_counter() - start
        reference = [t.float() for t in made_now] if reference is None else reference
        row["errors"] = [distance(t.float(), r) for t, r in zip(made_now, reference, strict=True)]
        if max(row["errors"]) > WRONG:
            raise CheckFailed(f"{name}: output and gradients are {row['errors']} from bf16's: nothing to time")
        del made_now
        step()
        row["peak_gib"] = memory(step, model)
        found[name] = (step if launched else captured(step, model, pool), row)  # one pool: one after the other
        model.zero_grad(set_to_none=True)
        print(
            f"{name}: {row['peak_gib']:.2f} GiB, errors {row['errors']}, {row['first_step_s']:.0f} s",
            flush=True,
        )
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--peers", default=PEERS)
    parser.add_argument("--attention", default="auto", choices=("auto", "cudnn", "flash", "flash4"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--explain", action="store_true", help="say for each layer why it is faster or is not")
    parser.add_argument("--launched", action="store_true", help="kernel by kernel, without CUDA graphs")
    parser.add_argument("--kernels", default="", help="variants whose slowest kernels are printed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch._dynamo.config.recompile_limit = 64  # one per variant
    sizes = (WIDTH, GATED, HEADS, KEYS, options.layers, BATCH, CONTEXT)
    names = [n for n in options.recipes.split(",") if n]
    peers = [n for n in options.peers.split(",") if n]
    runs = attention(sizes, options.attention)
    variants = build(names, peers, sizes, "cuda", not options.eager, options.launched, runs["kind"])
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
        "sizes": dict(zip(("width", "gated", "heads", "keys", "layers", "batch", "context"), sizes, strict=True)),
        "compiled": not options.eager,
        "graphs": not options.launched,
        "rounds": options.rounds,
        "steps_a_round": STEPS,
        "attention": runs,
        "variants": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write = (options.out / "train-cuda.json").write_text
    write(json.dumps(result, indent=1) + "\n")
    if options.explain:
        variants.clear()
        result["layers"] = explain([n for n in names if "joined" not in n], sizes)
        write(json.dumps(result, indent=1) + "\n")
