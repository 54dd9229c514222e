"""Seconds of GPTQ on one 4096 x 14336 layer on a CUDA device, beside llm-compressor's core in the same run.

    python bench/run.py gptq_gpu [--rows 4096 --columns 14336] [--out FOLDER]   writes bench/results/gptq-cuda.json

Correct first: on a small layer the CUDA result is held against the CPU's, and the recorded graph against the same
operations run one by one. Then every cast is timed (median of three, after one to warm up), with its error. The peer
gets the same weights, H and scales; with and without its own Triton kernel.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench.peers import llmcompressor_gptq, peer_gptq, version
from torch import Tensor

from narrowcast.io import versions
from narrowcast.ptq import Solver, gptq, output_error
from narrowcast.ptq import sweep as sweeping
from narrowcast.quantize import cast

RESULTS = Path(__file__).parent / "results"
CASTS = (
    "int4/1x128/fp32", "e2m1fn/1x16/e4m3fn+fp32", "e2m1fn/1x32/e8m0", "e2m1fn/1x128/float16-signs", "nf4/1x64/fp32",
    "e4m3fn/row/fp32",
)  # fmt: skip
TIMED = (*((c, 0) for c in CASTS), ("int4/1x128/fp32", 1))


def layer(rows: int, columns: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight and the H of correlated inputs with channels of very different size."""
    g = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    size = normal(columns).mul(0.7).exp()
    h = torch.zeros(columns, columns, device=device)
    mix = normal(64, columns)
    for _ in range(8):
        x = (normal(4096, columns) + normal(4096, 64) @ mix * 0.3) * size
        h.addmm_(x.mT, x)
    return normal(rows, columns) * 0.02, h / 32768


def seconds(run: Callable[[], object], times: int = 3) -> float:
    """Return the median seconds of ``times`` runs after one that warms up."""
    found = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def check(device: str) -> list[dict[str, Any]]:
    """Hold the CUDA result against the CPU's, and the graph against its operations one by one."""
    w, h = layer(256, 1024, "cpu")
    rows = []
    for spelling in CASTS:
        for refine in (0, 1):
            solver = Solver(refine=refine)
            cpu = gptq(w, h, cast(spelling).settle(w), solver).values
            there = w.to(device), h.to(device)
            settled = cast(spelling).settle(there[0])
            graph = gptq(*there, settled, solver).values
            recorded, sweeping._recorded = sweeping._recorded, lambda function, example: function
            eager = gptq(*there, settled, solver).values
            sweeping._recorded = recorded
            row = {
                "cast": spelling,
                "refine": refine,
                "graph_differs": int((graph != eager).sum()),
                "share_unlike_cpu": float((graph.cpu() != cpu).float().mean()),
                "error_cpu": output_error(w, cpu, h),
                "error_cuda": output_error(w, graph.cpu(), h),
                "error_nearest": output_error(w, cast(spelling).apply(w), h),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def measure(rows: int, columns: int, device: str, peers: Path) -> list[dict[str, Any]]:
    """Return seconds and errors of every cast and of the peer."""
    w, h = layer(rows, columns, device)
    found: list[dict[str, Any]] = []

    def add(name: str, spelling: str, run: Callable[[], Tensor]) -> None:
        try:
            took, values = seconds(run), run()
        except (RuntimeError, ValueError) as error:
            print(name, spelling, "failed:", error, flush=True)
            return
        found.append({"who": name, "cast": spelling, "seconds": took, "error": output_error(w, values, h)})
        print(f"{name:34} {spelling:32} {took:7.3f} s  error {found[-1]['error']:.3e}", flush=True)
        torch.cuda.empty_cache()

    for spelling, refine in TIMED:
        settled, solver = cast(spelling).settle(w), Solver(refine=refine)
        add(f"narrowcast, refine {refine}", spelling, lambda s=settled, v=solver: gptq(w, h, s, v).values)  # type: ignore[misc]
        del settled
    core = llmcompressor_gptq(peers)
    if core is None:
        print("no peer: see bench/peers.py", flush=True)
        return found
    scale = cast("int4/1x128/fp32").settle(w).scale.back[0][..., 0]
    for off in ("0", "1"):
        os.environ["LLMCOMPRESSOR_DISABLE_GPTQ_TRITON"] = off
        name = "llmcompressor core, " + ("eager" if off == "1" else "Triton")
        add(name, "int4/1x128/fp32", lambda: peer_gptq(core, w, h, scale, 128, True, 0.01))
    return found


def main(arguments: list[str]) -> None:
    """Check, measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peers", type=Path, default=Path(__file__).parent.parent / "build" / "peers")
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    checks = check("cuda")
    rows = measure(options.rows, options.columns, "cuda", options.peers)
    result = {
        "versions": versions() | {"device": torch.cuda.get_device_name(), "peer": version(options.peers)},
        "date": date.today().isoformat(),
        "shape": [options.rows, options.columns],
        "checks": checks,
        "times": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gptq-cuda.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
