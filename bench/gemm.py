"""Products on tensor cores: every plan beside bfloat16's, by shape.

    python bench/run.py gemm [--rounds N] [--out DIR]          writes bench/results/gemm-cuda.json

Codes are made beforehand; a figure is 2 M N K over the median time of the product alone, interleaved with the others in
every round: the library's, or of our own kernel (ours); what lays scales out for it included. Random inputs (zeros run
faster), 64 MB of other data written before each so that no operand is left in the cache. M tokens; N, K those of the
gemms of a Llama-8B layer, and 8192 cubed. Of MXFP4 also with the passes that decode its operands (`bench.gemm_mx`), and
as called, with launches and waiting.
"""

import argparse
import json
import statistics
from math import prod
from pathlib import Path
from typing import Any

import torch
from bench.gemm_mx import works
from bench.gpu import rounds

from narrowcast.backend import narrow
from narrowcast.io import versions
from narrowcast.kernels.gemm import gemm
from narrowcast.kernels.plan import Plan
from narrowcast.quantize import cast

RESULTS = Path(__file__).parent / "results"
SHAPES = (
    (8192, 8192, 8192), (16384, 4096, 4096), (16384, 1024, 4096), (16384, 14336, 4096), (16384, 4096, 14336),
    (4096, 4096, 16384), (14336, 4096, 16384), (4096, 14336, 16384),
)  # fmt: skip
#: name: tiles of a and b, fast accumulation, output; "ours": by our own kernel at every size
VARIANTS: dict[str, tuple[str, str, bool, torch.dtype]] = {
    "tensor": ("tensor", "tensor", False, torch.bfloat16),
    "tensor, fast": ("tensor", "tensor", True, torch.bfloat16),
    "row": ("row", "row", False, torch.bfloat16),
    "row, fast": ("row", "row", True, torch.bfloat16),
    "1x128 and 128x128": ("1x128", "128x128", False, torch.bfloat16),
    "1x128": ("1x128", "1x128", False, torch.bfloat16),
    "1x128, float32": ("1x128", "1x128", False, torch.float32),
    "1x128 and 128x128, ours": ("1x128", "128x128", False, torch.bfloat16),
    "1x128, ours": ("1x128", "1x128", False, torch.bfloat16),
    "1x128, float32, ours": ("1x128", "1x128", False, torch.float32),
}


def measure(m: int, n: int, k: int, count: int) -> dict[str, float]:
    """Return TFLOP/s of bfloat16 and every variant."""
    x, w = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
    other = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    work: dict[str, Any] = {"bfloat16": lambda: x @ w.t()}
    for name, (tile_a, tile_b, fast, out) in VARIANTS.items():
        a, b = narrow(cast(f"e4m3fn/{tile_a}/fp32"), x), narrow(cast(f"e4m3fn/{tile_b}/fp32"), w)
        by = "ours" if name.endswith("ours") else "library"
        plan = Plan("fp8", "e4m3fn", "e4m3fn", tile_a, tile_b, fast, by=by)
        work[name] = lambda a=a, b=b, plan=plan, out=out: gemm(a, b, plan, out)
    captured, called = works(x, w)
    work |= captured
    graphs = {}
    for name, run in work.items():
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graphs[name] = graph
    found = {}
    plays = {**{n: g.replay for n, g in graphs.items()}, **called}
    for name, times in rounds({n: lambda p=p: (other.zero_(), p()) for n, p in plays.items()}, count).items():
        found[name] = statistics.median(times)
    clearing = statistics.median(rounds({"zero": other.zero_}, count)["zero"])
    return {name: 2 * prod((m, n, k)) / (ms - clearing) / 1e9 for name, ms in found.items()}


def main(arguments: list[str]) -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    table = {}
    for shape in SHAPES:
        row = table["x".join(map(str, shape))] = measure(*shape, options.rounds)
        print(shape, {k: round(v) for k, v in row.items()}, flush=True)
    result = {"machine": versions(), "rounds": options.rounds, "tflops": table}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gemm-cuda.json").write_text(json.dumps(result, indent=1) + "\n")
