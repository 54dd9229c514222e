"""Probes of a GPU's accumulators, and how far `accumulate`'s models of Hopper's give whole products bit for bit.

    python bench/run.py accumulator [--out DIR]          writes bench/results/accumulator-cuda.json

Probes put single products into a sum of zeros and look at the float32 that comes out: how many bits behind the largest
exponent are kept, which way the rest goes, how many products are added at once, whether the running sum is cut like
them, and after how many products it is moved to float32. Then random products of many depths, sizes and scalings are
held against the models, float32 against float32: FP8 without scales; under scales, multiplied in every order that there
is; 16-bit.
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
from narrowcast.errors import CheckFailed
from narrowcast.io import versions
from narrowcast.kernels.plan import BLOCKS, OURS, Plan
from narrowcast.names import dtype_name
from narrowcast.quantize import cast
from narrowcast.verify.sums import ORDERS, in_order

RESULTS = Path(__file__).parent / "results"
E4M3 = torch.float8_e4m3fn
TERM = -13  # exponent of the smallest product that is kept beside 1
MODELS = (
    "hopper-fp8", "hopper-fp8/every128/fp32", "aligned-32-13-14", "aligned-32-13-23", "aligned-32-12-13",
    "aligned-32-14-13", "aligned-32-13-13+late", "aligned-32-13-13+normalised", "aligned-16-13-13",
    "aligned-32-13-23/every128/fp32",
)  # fmt: skip
MODELS16 = (
    "hopper-fp16", "aligned-16-24-23", "aligned-16-26-23", "aligned-8-25-23", "aligned-32-25-23",
    "aligned-16-25-23+late", "aligned-16-25-23+normalised",
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


def scaled(
    tiles: tuple[str, str], formats: tuple[str, str], fast: bool, size: int, depth: int, by: str = "library"
) -> dict[str, float]:
    """Return the share of a product under scales, float32, that the model gives bit for bit by each order of scales."""
    from narrowcast.kernels.gemm import gemm

    generator = torch.Generator("cuda").manual_seed(depth)
    x, w = (torch.randn(rows, depth, device="cuda", generator=generator) for rows in (64, size))
    a, b = (cast(f"{f}/{t}/fp32").quantize(y) for f, t, y in zip(formats, tiles, (x, w), strict=True))
    plan = Plan("fp8", *formats, *tiles, fast, by=by)
    try:
        y = gemm(a, b, plan, torch.float32)
    except CheckFailed as error:
        print(error)
        return {"refused": 0.0}
    found = {}
    for each in (True,) if tiles[0] in BLOCKS else (False,) if fast else (False, True):
        for order in ORDERS if each else list(ORDERS)[:3]:  # to a total of zero the others are the same
            share = float((in_order(a, b, plan, order, each) == y).double().mean())
            found[f"{order}, {'each 128' if each else 'at the end'}"] = share
    return found


def wide(size: int, depth: int, dtype: torch.dtype, models: tuple[str, ...]) -> dict[str, float]:
    """Return the share of 32 rows of a random 16-bit product that each model gives; and of one in the 16-bit type."""
    generator = torch.Generator("cuda").manual_seed(depth)
    a, b = (torch.randn(size, depth, device="cuda", generator=generator).to(dtype) for _ in "ab")
    y, narrow = torch.mm(a, b.t(), out_dtype=torch.float32)[:32], torch.mm(a, b.t())[:32]
    smallest = torch.finfo(dtype).tiny
    left, right = Codes(a[:32].float(), None, smallest), Codes(b.float(), None, smallest)
    found = {}
    for name in models:
        want = accumulator(name).matmul(left, right)
        found[name] = float((y == want).double().mean())
        if name == MODELS16[0]:
            found[f"{name}, rounded to the type"] = float((narrow == want.to(dtype)).double().mean())
    return found


def subnormal() -> dict[str, float]:
    """Return float16 sums of 2**-24 * 2**15 = 2**-9 and a small product: 0 where a subnormal operand pushes it out."""
    found = {}
    for j in range(20, 38):
        a, b = (torch.zeros(128, 64, dtype=torch.float16, device="cuda") for _ in "ab")
        a[0, 0], b[0, 0], a[0, 1], b[0, 1] = 2.0**-24, 2.0**15, 2.0**-12, 2.0 ** (12 - j)
        found[f"2**-9 + 2**-{j}"] = float(torch.mm(a, b.t(), out_dtype=torch.float32)[0, 0]) - 2.0**-9
    return found


DEPTHS = (128, 1024, 4096)
TILES = (("tensor", "tensor"), ("row", "row"), ("1x128", "128x128"), ("1x128", "1x128"))


def all_scaled() -> dict[str, Any]:
    """Return `scaled` of every kind of scales and some depths."""
    result = {}
    for tiles in TILES:
        for fast in (False,) if tiles[0] in BLOCKS else (False, True):
            for formats in (("e4m3fn", "e4m3fn"), ("e5m2", "e4m3fn"))[: 1 if tiles[0] in BLOCKS else 2]:
                ways = [
                    (by, depth) for by in (("library", "ours") if tiles in OURS else ("library",)) for depth in DEPTHS
                ]
                for by, depth in ways:
                    key = f"{formats[0]}/{tiles[0]} x {formats[1]}/{tiles[1]}, {'fast' if fast else 'split'}, K {depth}"
                    key += ", ours" if by == "ours" else ""
                    result[key] = scaled(tiles, formats, fast, 256, depth, by)
                    best = max(result[key], key=lambda order: result[key][order])
                    print(f"{key}: {result[key][best]:.4f} {best}", flush=True)
    return result


def all_wide() -> dict[str, Any]:
    """Return `wide` of both types, some sizes and depths."""
    result: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        name = dtype_name(dtype)
        for size in (128, 1024, 4096):
            for depth in (16, 64, 256, 1024, 4096):
                models = MODELS16 if size == 128 else MODELS16[:1]
                found = wide(size, depth, dtype, models)
                result.setdefault(name, {})[f"{size}x{size}x{depth}"] = found
        print(name, {k: round(v[MODELS16[0]], 4) for k, v in result[name].items()}, flush=True)
    return result


def main(arguments: list[str]) -> None:
    """Probe, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"machine": versions(), "probes": {}, "models": {}}
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
    result["scaled"], result["16-bit"], result["subnormal float16"] = all_scaled(), all_wide(), subnormal()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accumulator-cuda.json").write_text(json.dumps(result, indent=1) + "\n")
