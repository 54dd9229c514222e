"""The optimizer step on a GPU: first that its bits are the definition's, then its time beside torch's fused AdamW.

    python bench/run.py optimizer_gpu [--out DIR] [--quick]      writes bench/results/optimizer-cuda.json

Tensors are those of a Llama-8B layer, and those of a small model (many tensors, little work). Steps are interleaved in
rounds; a figure is the median over rounds of the ratio to torch.optim.AdamW(fused=True) with float32 parameters,
gradients and moments in the same round. Bytes: what a step must move, each part read once and written once; a device
copy that moves as many is timed in the same rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from narrowcast.names import dtype_name
from narrowcast.optim import NarrowOptimizer, method, optimizers

RESULTS = Path(__file__).parent / "results"
LLAMA = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336), (4096,)]
SMALL = [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048), (768,), (768,)]
MODELS = {"a layer of Llama-8B": LLAMA, "12 layers, 768 wide": SMALL * 12}
NUMBERS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


# --- bits ---


def difference(states: str, dtype: torch.dtype) -> list[str]:
    """Return where four steps of kernel and definition disagree, element for element."""
    g = torch.Generator(device="cuda").manual_seed(0)
    shapes = [(700, 128), (333,), (64, 4096)]
    start = [torch.randn(shape, generator=g, device="cuda").mul_(0.02).to(dtype) for shape in shapes]
    found, expected = ([torch.nn.Parameter(p.clone()) for p in start] for _ in "ab")
    a = NarrowOptimizer(found, states, **NUMBERS, seed=7, backend="native")
    b = NarrowOptimizer(expected, states, **NUMBERS, seed=7, backend="emulate")
    for _ in range(4):
        for p, q in zip(found, expected, strict=True):
            decades = torch.randint(-7, 1, p.shape, generator=g, device="cuda")
            p.grad = (torch.randn(p.shape, generator=g, device="cuda") * 10.0**decades).to(dtype)
            p.grad.view(-1)[:200] = 0
            q.grad = p.grad.clone()
        a.step()
        b.step()
    differ = []
    for number, (p, q) in enumerate(zip(found, expected, strict=True)):
        pairs = {"parameter": (p.detach(), q.detach())} | {k: (a.state[p][k], t) for k, t in b.state[q].items()}
        for part, (x, y) in pairs.items():
            if wrong := int(((x != y) & ~(x.isnan() & y.isnan())).sum()):
                differ.append(f"{states}, {dtype}, tensor {number}, {part}: {wrong} of {x.numel()} differ")
    return differ


# --- speed ---


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters with gradients."""
    made = [torch.nn.Parameter(torch.randn(shape, device="cuda").mul_(0.02).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, device="cuda").mul_(1e-3).to(dtype)
    return made


def milliseconds(work: Callable[[], Any]) -> float:
    """Return the device time of one call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def moved(states: str, count: int, dtype: torch.dtype) -> float:
    """Return the bytes that a step moves per parameter: gradient, states twice, the parameter where it is written too.

    Where one scale serves a tensor everything is read twice.
    """
    kept = method(states)
    carried = "codes" in kept.weight.carried(dtype) or "high" in kept.weight.carried(dtype)
    size = kept.bytes_per_parameter(count)
    read = dtype.itemsize + size
    twice = any("/tensor/fp32" in str(s) for s in kept.storages.values())
    return read * (2 if twice else 1) + size + (0 if carried else dtype.itemsize)


def contestants(shapes: list[tuple[int, ...]]) -> dict[str, tuple[torch.optim.Optimizer, float, float]]:
    """Return, by name, the optimizer, the bytes of its states and weights per parameter, and those that it moves."""
    count = sum(torch.Size(shape).numel() for shape in shapes)
    found: dict[str, tuple[torch.optim.Optimizer, float, float]] = {}
    for name, options in (("fused", {"fused": True}), ("foreach", {"foreach": True})):
        made = tensors(shapes, torch.float32)
        found[f"torch AdamW, float32, {name}"] = torch.optim.AdamW(made, **NUMBERS, **options), 12.0, 28.0
    made = tensors(shapes, torch.bfloat16)
    found["torch AdamW, bfloat16, fused"] = torch.optim.AdamW(made, **NUMBERS, fused=True), 6.0, 14.0
    for states in optimizers():
        for dtype in (torch.bfloat16, torch.float32):
            opt = NarrowOptimizer(tensors(shapes, dtype), states, **NUMBERS, backend="native")
            name = f"{states}, {dtype_name(dtype)} parameters"
            found[name] = opt, opt.nbytes / count, moved(states, count, dtype)
    return found


def speed(shapes: list[tuple[int, ...]], rounds: int) -> dict[str, Any]:
    """Return the figures of each optimizer on one set of tensors."""
    everyone = contestants(shapes)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    source = torch.empty(14 * count, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times: dict[str, list[float]] = {name: [] for name in ("copy", *everyone)}
    for turn in range(rounds + 3):
        for name, (opt, _, _) in everyone.items():
            times[name].append(milliseconds(opt.step))
        times["copy"].append(milliseconds(lambda: target.copy_(source)))
        if turn == 2:
            times = {name: [] for name in times}
    base = times["torch AdamW, float32, fused"]
    rows = {}
    for name, (_, kept, bytes_) in everyone.items():
        ms = statistics.median(times[name])
        copy = statistics.median(times["copy"]) * bytes_ / 28
        rows[name] = {
            "ms": round(ms, 4),
            "ps_per_parameter": round(ms * 1e9 / count, 3),
            "times_faster": round(statistics.median(b / t for b, t in zip(base, times[name], strict=True)), 3),
            "bytes_kept": round(kept, 4),
            "bytes_moved": round(bytes_, 3),
            "share_of_copy": round(copy / ms, 3),
        }
    return {"tensors": len(shapes), "parameters": count, "rounds": rounds, "rows": rows}


def knobs(shapes: list[tuple[int, ...]], names: tuple[str, ...]) -> None:
    """Print the time of launch shapes: groups of one program, and its warps."""
    from narrowcast.kernels import optimizer as kernel

    plan = kernel.Plan
    for states in names:
        for groups, warps in ((4, 2), (8, 2), (8, 4), (16, 4), (16, 8), (32, 8)):
            kernel.Plan = partial(plan, knobs=kernel.Knobs(groups, warps))
            opt = NarrowOptimizer(tensors(shapes, torch.bfloat16), states, **NUMBERS, backend="native")
            ms = sorted(milliseconds(opt.step) for _ in range(12))[5]
            print(f"  {states:20s} groups {groups:3d} warps {warps}: {ms:7.3f} ms", flush=True)
    kernel.Plan = plan


def main(arguments: list[str]) -> None:
    """Check, time, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--tune", action="store_true", help="print the time of other launch shapes too")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("error: needs a CUDA device")
    import triton

    from narrowcast.io import versions

    start = time.perf_counter()
    result: dict[str, Any] = {"versions": {**versions(), "triton": triton.__version__}}
    types = (torch.float32, torch.bfloat16)
    differ = [text for states in optimizers() for dtype in types for text in difference(states, dtype)]
    result["check"] = {"optimizers": list(optimizers()), "types": [str(t) for t in types], "differ": differ}
    print(f"{len(differ)} differences, {time.perf_counter() - start:.0f} s", *differ[:20], sep="\n", flush=True)
    if options.tune:
        knobs(LLAMA, ("fp8-adam", "fp8-adam-blocks", "fp8-adam-expanded", "bf16-adam-sr"))
    result["speed"] = {}
    for name, shapes in MODELS.items():
        found = result["speed"][name] = speed(shapes, 5 if options.quick else options.rounds)
        print(f"\n{name}: {found['tensors']} tensors, {found['parameters']:,} parameters", flush=True)
        for row, f in found["rows"].items():
            print(
                f"{row:44s} {f['ms']:8.3f} ms  {f['times_faster']:6.2f}x  {f['bytes_kept']:6.2f} B kept  "
                f"{f['bytes_moved']:6.2f} B moved  {f['share_of_copy']:5.0%} of a copy", flush=True,
            )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "optimizer-cuda.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
