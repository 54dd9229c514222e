"""Probes of a GPU's FP8 accumulator, and how far `accumulate`'s model of Hopper's gives whole products bit for bit.

    python bench/run.py accumulator [--out DIR]          writes bench/results/accumulator-cuda.json

Probes put single products into a sum of zeros and look at the float32 that comes out: how many bits behind the largest
exponent are kept, which way the rest goes, how many products are added at once, whether the running sum is cut like
them, and after how many products it is moved to float32. Then random products of many depths, sizes and scalings are
held against the models, float32 against float32.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from narrowcast.accumulate import Accumulator, Codes, accumulator
from narrowcast.io import versions
from narrowcast.kernels.plan import Plan
from narrowcast.quantize import cast
from narrowcast.verify import products

RESULTS = Path(__file__).parent / "results"
E4M3 = torch.float8_e4m3fn
TERM = -13  # exponent of the smallest product that is kept beside 1
MODELS = (
    "hopper-fp8", "hopper-fp8/every128/fp32", "aligned-32-13-14", "aligned-32-13-23", "aligned-32-12-13",
    "aligned-32-14-13", "aligned-32-13-13+late", "aligned-32-13-13+normalised", "aligned-16-13-13",
    "aligned-32-13-23/every128/fp32",
)  # fmt: skip


def multiply(a: Tensor, b: Tensor, fast: bool) -> Tensor:
    """Return the library's float32 product of FP8 codes ``a [M, K]`` and ``b [N, K]`` under scales of 1."""
    one = torch.ones(1, device=a.device)
    tensor = ScalingType.TensorWise
    return F.scaled_mm(
        a.to(E4M3), b.to(E4M3).t(), one, tensor, one, tensor, output_dtype=torch.float32, use_fast_accum=fast
    )


def dot(terms: list[tuple[int, float, float]], fast: bool, depth: int = 512) -> float:
    """Return the sum of products ``x y`` that stand at given places along K."""
    a, b = torch.zeros(128, depth, device="cuda"), torch.zeros(128, depth, device="cuda")
    for k, x, y in terms:
        a[0, k], b[0, k] = x, y
    return float(multiply(a, b, fast)[0, 0])


def power(exponent: int) -> tuple[float, float]:
    """Return two e4m3fn numbers whose product is ``2**exponent``."""
    return 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)


def probes(fast: bool) -> dict[str, Any]:
    """Return what single products tell."""
    one, unit, half = (0, 1.0, 1.0), power(TERM), power(TERM - 1)
    kept = [j for j in range(1, 18) if dot([one, (1, *power(-j))], fast) != 1.0]
    large = [j for j in range(1, 18) if dot([(0, 1.75, 1.75), (1, *power(-j))], fast) != 1.75**2]
    place = (1, 2, 15, 16, 31, 32, 33, 63, 64, 127, 128, 129, 255, 256)
    return {
        "bits kept behind a product of 1": max(kept),
        "bits kept behind a product of 1.75 * 1.75 = 3.0625": max(large),
        "1 - 2**-14": dot([one, (1, -half[0], half[1])], fast),
        "-1 - 2**-14": dot([(0, -1.0, 1.0), (1, -half[0], half[1])], fast),
        "two of 2**-14, then 1 at k": {k: dot([(0, *half), (1, *half), (k, 1.0, 1.0)], fast) - 1 for k in place[1:]},
        "1, then 2**-14 at k": {k: dot([one, (k, *half)], fast) - 1 for k in place},
        "1, then 2**-13 at k": {k: dot([one, (k, *unit)], fast) - 1 for k in place},
    }


def matches(size: int, depth: int, fast: bool, model: Accumulator, seed: int) -> float:
    """Return the share of 32 rows of a random product that ``model`` gives bit for bit."""
    generator = torch.Generator("cuda").manual_seed(seed)
    a, b = (torch.randn(size, depth, device="cuda", generator=generator).to(E4M3).float() for _ in "ab")
    found = multiply(a, b, fast)[:32]
    want = model.matmul(Codes(a[:32], None, 2.0**-6), Codes(b, None, 2.0**-6))
    return float((found == want).double().mean())


def scaled(tile_a: str, tile_b: str, formats: tuple[str, str], size: int, depth: int) -> float:
    """Return the share of a product under scales, float32, that the model gives bit for bit, scales in either order."""
    from narrowcast.kernels.gemm import gemm

    torch.manual_seed(0)
    a = cast(f"{formats[0]}/{tile_a}/fp32").quantize(torch.randn(64, depth, device="cuda"))
    b = cast(f"{formats[1]}/{tile_b}/fp32").quantize(torch.randn(size, depth, device="cuda"))
    plan = Plan("fp8", *formats, tile_a, tile_b)
    found = gemm(a, b, plan, torch.float32)
    return max(float((found == model).double().mean()) for model in products(a, b, plan))


def main(arguments: list[str]) -> None:
    """Probe, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"machine": versions(), "probes": {}, "models": {}, "scaled": {}}
    for fast in (True, False):
        name = "fast" if fast else "split"
        result["probes"][name] = probes(fast)
        table = result["models"][name] = {}
        for size in (128, 1024, 4096):
            for depth in (32, 64, 128, 256, 1024, 4096, 16384):
                chosen = MODELS if size == 128 and depth <= 1024 else MODELS[:2]
                found = {m: matches(size, depth, fast, accumulator(m), depth) for m in chosen}
                table[f"{size}x{size}x{depth}"] = found
            print(name, size, {k: round(v[MODELS[0 if fast else 1]], 4) for k, v in table.items()}, flush=True)
    e4, e5 = ("e4m3fn", "e4m3fn"), ("e5m2", "e4m3fn")
    tiles = (("tensor", "tensor", e4), ("tensor", "tensor", e5), ("row", "row", e4), ("1x128", "128x128", e4))
    for tile_a, tile_b, formats in (*tiles, ("1x128", "1x128", e4)):
        for depth in (128, 1024, 4096):
            key = f"{formats[0]}/{tile_a} x {formats[1]}/{tile_b}, K {depth}"
            result["scaled"][key] = scaled(tile_a, tile_b, formats, 256, depth)
            print(key, result["scaled"][key], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accumulator-cuda.json").write_text(json.dumps(result, indent=1) + "\n")
