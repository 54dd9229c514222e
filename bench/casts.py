"""CPU speed of rounding and block casts beside their peers, as multiples of ``x.clone()`` on the same tensor.

    python bench/run.py casts [--quick] [--threads 2]     writes bench/results/casts-cpu.json

Every variant and the clone are timed in turn within each round, and a figure is the median over rounds of the ratio to
the clone of that round. Peers are imported here and nowhere else; one that does not import is left out by name.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import narrowcast as nc
from narrowcast.io import versions

RESULTS = Path(__file__).parent / "results"
FLOATS = (
    "bfloat16 float16 e5m2 e4m3fn e4m3 e3m4 e5m2fnuz e4m3fnuz e4m3b11fnuz e3m2fn e2m3fn e2m1fn e3m0fn e1m2fn "
    "ue4m3 ue5m3 e8m0 int8 int4 uint8 q3.12 e5m7 e6m5 e8m3 binary8p3 binary8p4ue "
    "hif8 posit8_0 posit8_1 posit16_1 lns8_8 nf4 fp4_bnb dynamic8"
)
BLOCKS = (
    "mxfp8_e4m3 mxfp8_e5m2 mxfp6_e2m3 mxfp6_e3m2 mxfp4 mxint8 nvfp4 e4m3fn/row/fp32 e4m3fn/1x128/fp32 "
    "e4m3fn/128x128/fp32 int8/32x32/fp32 mxint4 nvint4 bfp16 bfp4 dfp16 int4-g128 e2m1fn/1x16/ue4m4 "
    "bnb-nf4 bnb-fp4 posit8_1/1x32/e8m0-headroom11"
)
MODES = ("nearest-away", "toward-zero", "up", "down", "odd", "stochastic", "stochastic-equal", "stochastic-flush")

Work = Callable[[torch.Tensor], Any]


def ours() -> dict[str, Work]:
    """Return our variants: nearest-even to every format, every other mode to e4m3fn, block casts."""
    found: dict[str, Work] = {}
    for fmt in map(nc.format, FLOATS.split()):
        found[f"round {fmt}"] = lambda x, f=fmt: f.round(x)
    for mode in MODES:
        found[f"round e4m3fn {mode}"] = lambda x, m=mode: nc.round(x, "e4m3fn", m)
    for spelling in BLOCKS.split():
        narrow = nc.cast(spelling)
        found[f"cast {spelling}"] = lambda x, c=narrow: c.apply(x)
    return found


def peers() -> dict[str, Work]:
    """Return the peers' ways of the same round trips; those that do not import are left out."""
    found: dict[str, Work] = {"torch e4m3fn round trip": lambda x: x.to(torch.float8_e4m3fn).float()}
    for add in (_ml_dtypes, _gfloat, _pychop, _torchao):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.update(add())
        except ImportError as error:
            print(f"left out: {error}")
    return found


def _ml_dtypes() -> dict[str, Work]:
    import ml_dtypes

    kind = ml_dtypes.float8_e4m3fn
    return {"ml_dtypes e4m3fn": lambda x: x.numpy().astype(kind).astype("float32")}


def _gfloat() -> dict[str, Work]:
    from gfloat import round_ndarray
    from gfloat.formats import format_info_ocp_e4m3

    return {"gfloat e4m3fn": lambda x: round_ndarray(format_info_ocp_e4m3, x.numpy(), sat=True)}


def _pychop() -> dict[str, Work]:
    import pychop
    from pychop import Chop

    pychop.backend("torch")
    near, dither = Chop(exp_bits=4, sig_bits=3, rmode=1), Chop(exp_bits=4, sig_bits=3, rmode=5)
    return {"pychop e4m3": lambda x: near(x), "pychop e4m3 stochastic": lambda x: dither(x)}


def _torchao() -> dict[str, Work]:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    def mx(kind: torch.dtype) -> Work:
        return lambda x: MXTensor.to_mx(x, kind, 32).dequantize(torch.float32)

    return {"torchao mxfp4": mx(torch.float4_e2m1fn_x2), "torchao mxfp8_e4m3": mx(torch.float8_e4m3fn)}


def ratios(x: torch.Tensor, work: dict[str, Work], rounds: int) -> dict[str, float]:
    """Return the median ratio of each variant's time to that of ``x.clone()`` in the same round."""
    seen: dict[str, list[float]] = {name: [] for name in work}
    for fn in work.values():
        fn(x)
    for _ in range(rounds):
        base = _time(lambda t: t.clone(), x)
        for name, fn in work.items():
            seen[name].append(_time(fn, x) / base)
    return {name: statistics.median(values) for name, values in seen.items()}


def _time(fn: Work, x: torch.Tensor) -> float:
    start = time.perf_counter()
    fn(x)
    return time.perf_counter() - start


def compiled(work: dict[str, Work]) -> dict[str, Work]:
    """Return ``work`` compiled whole, each variant on its own."""
    torch._dynamo.config.recompile_limit = 1000
    return {name: torch.compile(fn, fullgraph=True, dynamic=False) for name, fn in work.items()}


def measure(side: int, rounds: int) -> dict[str, Any]:
    """Return the figures for one ``side x side`` float32 tensor."""
    x = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    clone = statistics.median(_time(lambda t: t.clone(), x) for _ in range(10)) / x.numel() * 1e9
    mine = ours()
    return {
        "shape": [side, side],
        "clone_ns_per_element": clone,
        "eager": ratios(x, mine, rounds),
        "compiled": ratios(x, compiled(mine), rounds),
        "peers": ratios(x, peers(), max(3, rounds // 3)),
    }


def main(arguments: list[str]) -> None:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small tensor, three rounds, nothing written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sides, rounds = ((512,), 3) if options.quick else ((4096, 1024), options.rounds)
    results = [measure(side, rounds) for side in sides]
    for result in results:
        side, clone = result["shape"][0], result["clone_ns_per_element"]
        table = Table(
            "variant", "eager", "compiled", title=f"{side} x {side} float32; times clone ({clone:.2f} ns/element)"
        )
        for name, ratio in result["eager"].items():
            table.add_row(name, f"{ratio:.1f}", f"{result['compiled'][name]:.1f}")
        for name, ratio in result["peers"].items():
            table.add_row(name, f"{ratio:.1f}", "")
        Console().print(table)
    if not options.quick:
        path = RESULTS / "casts-cpu.json"
        path.write_text(json.dumps({"versions": versions(), "results": results}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
