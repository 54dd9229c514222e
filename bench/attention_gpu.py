"""Attention by every kernel that can run here: forward and backward pass apart, in one run.

    python bench/run.py attention_gpu [--quick] [--out DIR]

bfloat16, in CUDA graphs, interleaved; a figure is the median of its rounds. Each shape twice: kernels as they are, and
those whose backward pass repeats itself bit for bit (what `narrowcast train` asks for). Beside each time stand TFLOP/s
(4 B H T T D forward, half of it where causal; 2.5 times as many backward) and the distance of the output and of the
gradients from float32 mathematics on the same numbers, for two of the B. Writes bench/results/attention-cuda.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench.gpu import rounds
from torch import Tensor

from narrowcast.attend import KERNELS, Setting, attend
from narrowcast.io import versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shape:
    """Of one attention: ``keys`` heads of keys are shared by ``heads`` of queries, all of them of ``size``."""

    what: str
    batch: int
    heads: int
    keys: int
    tokens: int
    size: int
    causal: bool = True

    @property
    def flops(self) -> float:
        """Operations of the forward pass."""
        return (2 if self.causal else 4) * self.batch * self.heads * self.tokens**2 * self.size


SHAPES = (
    Shape("the training step's", 4, 32, 8, 4096, 128),
    Shape("the pretraining's", 32, 24, 4, 1024, 128),
    Shape("heads of 64", 4, 32, 8, 4096, 64),
    Shape("not causal", 4, 32, 8, 4096, 128, causal=False),
    Shape("every head its own keys", 4, 32, 32, 4096, 128),
)


@contextmanager
def repeating(on: bool) -> Iterator[None]:
    """Ask for deterministic algorithms inside, or not."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def tensors(shape: Shape, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v as projections leave them (tokens before heads, seen as heads before tokens), and the gradient."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def drawn(heads: int) -> Tensor:
        size = (shape.batch, shape.tokens, heads, shape.size)
        return torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    inputs = [drawn(heads).requires_grad_() for heads in (shape.heads, shape.keys, shape.keys)]
    return inputs, drawn(shape.heads)


def passes(kind: str, shape: Shape, inputs: list[Tensor], g: Tensor) -> dict[str, Callable[[], None]]:
    """Return the replays of the forward and of the backward pass."""
    inputs = [t.detach().requires_grad_() for t in inputs]  # leaves that know no other stream
    stream, graphs = torch.cuda.Stream(), (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph())

    def forward() -> Tensor:
        return attend(*inputs, causal=shape.causal, kind=kind)

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles
            torch.autograd.grad(forward(), inputs, g)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graphs[0], stream=stream):
        out = forward()
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), stream=stream):
        gradients = torch.autograd.grad(out, inputs, g)
    alive = (inputs, g, out, gradients)

    def replay(graph: torch.cuda.CUDAGraph) -> Callable[[], None]:
        def run(alive: Any = alive) -> None:
            graph.replay()

        return run

    return {"forward": replay(graphs[0]), "backward": replay(graphs[1])}


def able(shape: Shape, repeatable: bool) -> dict[str, str | None]:
    """Return for each of the fast kernels why it cannot run here, or None where it can."""
    setting = Setting.on(torch.device("cuda"), torch.bfloat16, shape.size, repeatable)
    return {kind: KERNELS[kind].against(setting) for kind in KERNELS if kind not in ("math", "torch", "efficient")}


def measure(shape: Shape, repeatable: bool, count: int) -> dict[str, Any]:
    """Return {kernel: {"forward_ms", "backward_ms", "ms"}, or {"absent": reason}}."""
    reasons = able(shape, repeatable)
    inputs, g = tensors(shape)
    work = {}
    with repeating(repeatable):
        for kind in (kind for kind, reason in reasons.items() if reason is None):
            work |= {f"{kind} {name}": run for name, run in passes(kind, shape, inputs, g).items()}
        times = {name: statistics.median(each) for name, each in rounds(work, count).items()}
    found: dict[str, Any] = {}
    for kind, reason in reasons.items():
        if reason is not None:
            found[kind] = {"absent": reason}
            continue
        forward, backward = times[f"{kind} forward"], times[f"{kind} backward"]
        found[kind] = {"forward_ms": forward, "backward_ms": backward, "ms": forward + backward}
    return found


def fastest(found: dict[str, Any]) -> str:
    """Return the kernel whose two passes take least."""
    return min((kind for kind in found if "ms" in found[kind]), key=lambda kind: found[kind]["ms"])


def distances(kind: str, shape: Shape, batches: int = 2) -> list[float]:
    """Return the relative distances of output and gradients of q, k, v from float32 mathematics."""
    inputs, g = tensors(shape, seed=1)
    out = attend(*inputs, causal=shape.causal, kind=kind)
    made = [out.detach(), *torch.autograd.grad(out, inputs, g)]
    errors, norms = [0.0] * 4, [0.0] * 4
    for b in range(min(batches, shape.batch)):
        wide = [t[b : b + 1].detach().float().requires_grad_() for t in inputs]
        exact = attend(*wide, causal=shape.causal, kind="math")
        expected = [exact.detach(), *torch.autograd.grad(exact, wide, g[b : b + 1].float())]
        for i, (ours, theirs) in enumerate(zip(made, expected, strict=True)):
            errors[i] += float((ours[b : b + 1].float() - theirs).square().sum())
            norms[i] += float(theirs.square().sum())
    return [(e / n) ** 0.5 for e, n in zip(errors, norms, strict=True)]


def main(arguments: list[str]) -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the first shape, three rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = []
    for shape in SHAPES[:1] if options.quick else SHAPES:
        for repeatable in (False, True):
            found = measure(shape, repeatable, 3 if options.quick else options.rounds)
            row = {**asdict(shape), "repeatable": repeatable, "fastest": fastest(found), "kernels": found}
            rows.append(row)
            show(shape, row)
    result = {"machine": versions(), "capability": torch.cuda.get_device_capability(), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attention-cuda.json").write_text(json.dumps(result, indent=1) + "\n")


def show(shape: Shape, row: dict[str, Any]) -> None:
    """Print one line for each kernel; the distances are measured here, into the row."""
    sizes = f"{shape.batch} x {shape.heads}/{shape.keys} x {shape.tokens} x {shape.size}"
    print(f"{shape.what}: {sizes}{', repeatable' if row['repeatable'] else ''}", flush=True)
    for kind, at in row["kernels"].items():
        if "absent" in at:
            print(f"  {kind:8s} {at['absent']}")
            continue
        with repeating(row["repeatable"]):
            at["distances"] = distances(kind, shape)
        forward, backward = at["forward_ms"], at["backward_ms"]
        rates = (shape.flops / forward / 1e9, 2.5 * shape.flops / backward / 1e9)
        far = " ".join(f"{d:.1e}" for d in at["distances"])
        print(
            f"  {kind:8s} forward {forward:6.3f} ms {rates[0]:4.0f} TFLOP/s  "
            f"backward {backward:6.3f} ms {rates[1]:4.0f}  both {at['ms']:6.3f}  "
            f"distances {far}{'  fastest' if kind == row['fastest'] else ''}",
            flush=True,
        )
