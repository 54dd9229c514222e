"""The Triton pass that quantizes, on a GPU: first that its bits are the definition's, then its speed beside a copy.

    python bench/run.py quantize_gpu [--out DIR] [--tune] [--quick]      writes bench/results/quantize-cuda.json

Bits: every format and rounding, every kind of cast, three source types, corner values; and for three formats all
2**32 float32 inputs. Speed: each variant is captured in a CUDA graph over several tensors in turn (so that no cache
helps) and replayed in rounds, with a device copy that moves the same bytes in each round; a figure is the median over
rounds of the copy's time over the variant's: the share of the copy's bandwidth.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench.gpu import graphed

import narrowcast as nc
from narrowcast.backend import choose_quantize
from narrowcast.formats import Integer, Stream, families, formats, roundings
from narrowcast.quantize import Cast

RESULTS = Path(__file__).parent / "results"
SHAPES = ((4096, 14336), (16384, 14336))
MX4, NV4, MX8 = "e2m1fn/1x32/e8m0", "e2m1fn/1x16/e4m3fn+fp32", "e4m3fn/1x32/e8m0"
SPEED = (
    "bfloat16", "e4m3fn", "e5m2", "int8", "e4m3fn/tensor/fp32", "e5m2/tensor/fp32", "e4m3fn/row/fp32", "int8/row/fp32",
    "e4m3fn/1x128/fp32", "e4m3fn/128x128/fp32", "int8/32x32/fp32", "int4/1x32/fp32", "int4/1x128/bfloat16",
    "mxfp8_e4m3", "mxfp8_e5m2", "e4m3fn/1x32/e8m0-ceil", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8",
    "nvfp4", "int4/1x16/e4m3fn+fp32", "e2m1fn/1x16/ue5m3", "e2m1fn/16x16/e4m3fn+fp32",
    f"{MX8}/up", f"{MX8}/stochastic", "mxint8/stochastic", "int8/row/fp32/stochastic", "e4m3fn/row/fp32/stochastic",
    f"{MX4}/stochastic", f"{NV4}/stochastic", f"{MX8}/nearest-even/hadamard32",
    *(f"{MX4}/nearest-even/hadamard{n}" for n in (16, 32, 128)),
    *(f"{MX4}/stochastic/hadamard{n}" for n in (16, 32, 128)),
    f"{MX4}-four-thirds/stochastic/hadamard32-fresh", f"{NV4}/stochastic/hadamard16-fixed",
    f"{NV4}/nearest-even/hadamard128", "e4m3fn/row/fp32/nearest-even/hadamard128",
    "bnb-nf4", "hifloat8", "posit8_1/1x32/fp32-headroom22", "posit8_1/1x32/e8m0-headroom11/stochastic",
    "lns8_8/row/fp32", "posit16_1/tensor/fp32-headroom26",
)  # fmt: skip
PEERS = ("mxfp4", "e4m3fn/row/fp32")
EXHAUSTIVE = ("e4m3fn", "e5m2", "e2m1fn")
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def spelled(name: str) -> Cast:
    """Return a cast, where a preset may carry a rounding: ``mxint8/stochastic``."""
    preset, _, rest = name.partition("/")
    return nc.cast(f"{nc.PRESETS[preset]}/{rest}") if preset in nc.PRESETS and rest else nc.cast(name)


# --- bits ---


def checked() -> list[str]:
    """Return the casts whose bits are compared: all formats, all roundings on six formats, all kinds of scale."""
    widths = ("int2", "int3", "int4", "int8", "int16", "int8_full", "uint4", "uint8", "q1.6")
    names = [*formats(), *(example for family in families() for example in family.examples)]
    found = [name for name in names if not isinstance(nc.format(name), Integer) or name in widths]
    modes = [m for m in roundings() if not m.rpartition("-")[2].isdigit() or m in ("stochastic-1", "stochastic-8")]
    for fmt in ("e4m3fn", "int8", "bfloat16", "ue5m3", "e4m3_ftz", "posit8_1", "hif8"):
        found += [f"{fmt}/tensor/one/{mode}" for mode in modes]
    for rule in ("fp32", "e8m0-ceil", "e8m0-ceil-exponent", "e8m0-even", "e8m0-nearest", "e4m3fn", "bfloat16"):
        found += [f"e3m2fn/1x64/{rule}", f"int4/1x32/{rule}"]
    found += ["e2m1fn/8x16/e4m3fn+fp32/odd", "int8/16x16+pad/fp32/nearest-even/hadamard8", "int5/1x96+pad/fp32"]
    return list(dict.fromkeys([*found, *SPEED, "e2m1fn/1x32+pad/e8m0/stochastic/hadamard64-fresh"]))


def tensors(dtype: torch.dtype, plain: bool) -> list[torch.Tensor]:
    """Return sources on the GPU: spread over many binades with corners, grid points and ties, poison, odd sizes.

    ``plain`` (no scale): one row of all of these, and every 16-bit value: one compiled kernel does.
    """
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1536, generator=g) * torch.exp2(torch.randint(-16, 16, (256, 1), generator=g).float())
    x *= torch.exp2(torch.randint(-4, 5, (1, 1536), generator=g).float())
    x[1], x[2, 3], x[3, 5] = 0.0, -0.0, 1e-42
    x[128:] = (torch.randint(-448, 449, (128, 1536), generator=g) / 64).float()
    poisoned = x.clone()
    poisoned[130, 7], poisoned[140, 40], poisoned[150, 9] = math.inf, -math.inf, -math.nan
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = torch.cat([every.view(torch.bfloat16).float(), every.view(torch.float16).float()])
    if plain:
        return [torch.cat([poisoned.flatten(), values]).view(1, -1).to(dtype).cuda()]
    odd = [torch.randn(33, 1000, generator=g)] if dtype == torch.bfloat16 else []
    return [piece.to(dtype).cuda() for piece in (x, poisoned, *odd)]


def difference(cast: Cast, x: torch.Tensor) -> str | None:
    """Return where kernel and definition disagree on ``x``, or None; sizes the cast cannot take are passed over."""
    stream = Stream(77 << 32 | 5, 3, 2)
    try:
        cast.padded_shape(tuple(x.shape))
    except nc.InputError:
        return None
    from narrowcast.kernels.native import quantize

    expected, found = cast.quantize(x, stream), quantize(cast, x, stream)
    for part in ("codes", "scales", "tensor_scale"):
        a, b = getattr(expected, part), getattr(found, part)
        if a is None or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))):
            continue
        wrong = (_bits(a) != _bits(b)).nonzero() if a.shape == b.shape else a.shape
        return f"{part} of {cast} from {x.dtype} {tuple(x.shape)}: {len(wrong)} differ, first at {wrong[0].tolist()}"
    return None


def _bits(t: torch.Tensor) -> torch.Tensor:
    """All NaNs alike: which one a processor makes is its own affair."""
    return torch.where(t.isnan(), float("nan"), t).view(torch.int32) if t.dtype == torch.float32 else t


def check(names: list[str]) -> list[str]:
    """Return the disagreements of casts; run in several processes, for most of the time goes into compiling."""
    found = []
    for name in names:
        cast = spelled(name)
        plain = not cast.scale.needs_amax
        for dtype in TYPES[2:] if plain else TYPES:
            for x in tensors(dtype, plain):
                try:
                    found.append(difference(cast, x))
                except Exception as error:  # a kernel that fails to compile is a finding, not the end
                    found.append(f"{name} {dtype} {tuple(x.shape)}: {type(error).__name__}: {str(error)[-300:]}")
                    break
    return [text for text in found if text]


def check_all(workers: int) -> dict[str, Any]:
    """Check every cast; return what was checked and what differed."""
    x = torch.empty(8, 8, device="cuda")
    names = [name for name in checked() if choose_quantize("auto", spelled(name), x).backend == "native"]
    without = [name for name in checked() if name not in names]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        differ = [text for found in pool.map(check, [names[i::workers] for i in range(workers)]) for text in found]
    return {"casts": len(names), "without_kernel": without, "types": [str(t) for t in TYPES], "differ": differ}


def compiled() -> list[str]:
    """Return what differs where the operator stands in a graph compiled whole."""
    differ = []
    for name in ("mxfp4", "nvfp4", "e4m3fn/row/fp32", f"{MX4}/stochastic/hadamard32-fresh"):
        cast, x = spelled(name), torch.randn(256, 1024, device="cuda")

        def run(x: torch.Tensor, cast: Cast = cast) -> tuple[torch.Tensor, torch.Tensor]:
            q = nc.quantize(x * 2.0, cast, seed=5, backend="native")
            return q.codes, q.scales

        try:
            codes, scales = torch.compile(run, fullgraph=True)(x)
        except Exception as error:
            differ.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        expected = nc.quantize(x * 2.0, cast, seed=5, backend="emulate")
        if not (torch.equal(codes, expected.codes) and torch.equal(scales, expected.scales)):
            differ.append(f"{name}: compiled whole, other bits")
    return differ


def exhaustive(name: str, chunk: int = 1 << 27) -> dict[str, Any]:
    """Compare the codes of all 2**32 float32 inputs."""
    cast, differ, start = nc.cast(name), 0, time.perf_counter()
    for first in range(-(1 << 31), 1 << 31, chunk):
        x = torch.arange(first, first + chunk, dtype=torch.int32, device="cuda").view(torch.float32).view(-1, 4096)
        codes = nc.quantize(x, cast, backend="native").codes
        differ += int((codes != nc.quantize(x, cast, backend="emulate").codes).sum())
    return {"inputs": 1 << 32, "bytes_differ": differ, "seconds": round(time.perf_counter() - start, 1)}


# --- speed ---


def moved(cast: Cast, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return the bytes that a pass must move: the source once, codes once, scales once."""
    count = math.prod(shape)
    return count * dtype.itemsize + math.ceil(cast.bits_per_element(shape) * count / 8)


def passes(cast: Cast, xs: list[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the kernels of a cast over ``xs``, given the maxima where it needs the whole tensor's; and those alone."""
    from narrowcast.kernels import launch, native

    stream, shape = Stream(5, 1, 2), tuple(xs[0].shape)
    bits = native._counter(stream, xs[0].device)
    source = launch.given(cast, shape[-1])
    maxima = [native._maxima(cast, x, None, bits, source) for x in xs]
    op, amax = torch.ops.narrowcast.quantize, torch.ops.narrowcast.amax
    found = {"": lambda: [op(x, str(cast), list(shape), *m, *bits) for x, m in zip(xs, maxima, strict=True)]}
    if maxima[0] != (None, None):
        found["amax"] = lambda: [amax(x, str(cast), list(shape), source == "row", *bits) for x in xs]
    return found


def copies(count: int, size: int) -> torch.cuda.CUDAGraph:
    """Return device copies that move ``size`` bytes each, read and written (up to 64 KiB), captured."""
    lines = torch.randint(0, 255, (count, -(-size // 65536), 32768), dtype=torch.uint8, device="cuda")
    return graphed(lambda: [torch.clone(source) for source in lines])


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    """Return the time of one replay."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def against_copy(work: Callable[[], Any], size: int, count: int, rounds: int) -> dict[str, float]:
    """Return the microseconds of ``work`` for one tensor, of the copy, and the median share of its bandwidth."""
    graph, copy = graphed(work), copies(count, size)
    for _ in range(3):
        milliseconds(graph), milliseconds(copy)
    pairs = [(milliseconds(graph), milliseconds(copy)) for _ in range(rounds)]
    return {
        "us": round(statistics.median(a for a, _ in pairs) / count * 1e3, 2),
        "copy_us": round(statistics.median(b for _, b in pairs) / count * 1e3, 2),
        "share": round(statistics.median(b / a for a, b in pairs), 4),
    }


def speed(shape: tuple[int, int], dtype: torch.dtype, names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Return the figures of each variant on tensors of ``shape``, several of them in turn."""
    count = max(3, -(-(1 << 29) // (math.prod(shape) * dtype.itemsize)))
    g = torch.Generator(device="cuda").manual_seed(0)
    xs = [torch.randn(shape, generator=g, device="cuda").to(dtype) for _ in range(count)]
    found = {}
    for name in names:
        cast = spelled(name)
        size = moved(cast, shape, dtype)
        for part, work in passes(cast, xs).items():
            bytes_ = size if not part else xs[0].nbytes
            found[f"{name} {part}".strip()] = {"bytes": bytes_, **against_copy(work, bytes_, count, rounds)}
        torch.cuda.empty_cache()
    return found


def peers(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Return the figures of the definition itself, as torch's compiler fuses it."""
    xs = [torch.randn(shape, device="cuda").bfloat16() for _ in range(3)]
    found: dict[str, Any] = {}
    for name in PEERS:
        cast = spelled(name)

        def run(x: torch.Tensor, cast: Cast = cast) -> tuple[torch.Tensor, torch.Tensor]:
            q = cast.quantize(x)
            return q.codes, q.scales

        fused, size = torch.compile(run, fullgraph=True), moved(cast, shape, torch.bfloat16)
        try:
            found[name] = against_copy(lambda work=fused: [work(x) for x in xs], size, len(xs), rounds)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return found


def main(arguments: list[str]) -> None:
    """Check, time, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="first shape and few rounds; nothing exhaustive")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("error: needs a CUDA device")
    import triton

    from narrowcast.io import versions

    start = time.perf_counter()
    result: dict[str, Any] = {"versions": {**versions(), "triton": triton.__version__}}
    result["check"] = check_all(min(os.cpu_count() or 1, 14))
    found = result["check"]
    found["compiled"] = compiled()
    print("compiled whole:", found["compiled"] or "the same")
    print(f"{found['casts']} casts, {len(found['differ'])} differences, {time.perf_counter() - start:.0f} s")
    print("\n".join(result["check"]["differ"][:40]))
    if not options.quick:
        result["exhaustive"] = {name: exhaustive(name) for name in EXHAUSTIVE}
        print(result["exhaustive"], f"{time.perf_counter() - start:.0f} s")
    shapes, rounds = (SHAPES[:1], 7) if options.quick else (SHAPES, options.rounds)
    result["speed"] = []
    for shape in shapes:
        rows = speed(shape, torch.bfloat16, SPEED, rounds)
        result["speed"].append({"shape": list(shape), "dtype": "bfloat16", "variants": rows})
        print(f"\n{shape} bfloat16", f"{time.perf_counter() - start:.0f} s")
        for name, row in rows.items():
            print(f"{name:55s} {row['us']:8.1f} us  copy {row['copy_us']:8.1f} us  {row['share']:.1%}")
    result["emulation_compiled"] = {"shape": list(SHAPES[0]), "variants": peers(SHAPES[0], rounds)}
    print("emulation, compiled:", result["emulation_compiled"], f"{time.perf_counter() - start:.0f} s")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "quantize-cuda.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
