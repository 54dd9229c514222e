"""The Triton passes over both orientations, on a GPU: first that their bits are the definition's, then their speed.

    python bench/run.py passes_gpu [--out DIR] [--quick]      writes bench/results/passes-cuda.json

Bits: every kind of cast, three source types, poison, odd sizes, and every fused operation, against `narrowcast.passes`
on the same device; all float32 inputs of the short quotients of `kernels.quick`. Speed: as `quantize_gpu`: CUDA graphs
over several tensors in turn, beside a device copy that moves the same bytes, the median over rounds of the copy's time
over the variant's. Where maxima (or a norm's rms) come from a pass before, its reading counts as bytes moved;
``least`` is the share where it does not: every input read once. ``compiled``: the plain definition under torch.compile.
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
from bench.quantize_gpu import milliseconds

import narrowcast as nc
from narrowcast import passes as plain
from narrowcast.formats import Stream
from narrowcast.quantize import QTensor
from narrowcast.scaling import Delayed

RESULTS = Path(__file__).parent / "results"
SHAPES = ((16384, 4096), (16384, 14336), (4096, 14336))
RUN, SQUARE, ROW, TENSOR = "e4m3fn/1x128/fp32", "e4m3fn/128x128/fp32", "e4m3fn/row/fp32", "e4m3fn/tensor/fp32"
GRADIENT, LATE, MX = "e5m2/tensor/fp32", "e4m3fn/tensor/fp32-delayed16", "mxfp8_e4m3"
ROUNDED = "e5m2/tensor/fp32/stochastic"
#: of both orientations (empty: the same codes turned)
CASTS = (
    (RUN, RUN), (SQUARE, ""), (SQUARE, SQUARE), (ROW, ROW), (TENSOR, ""), (TENSOR, GRADIENT), ("e4m3fn", ""),
    ("e5m2", "e4m3fn"),
    (MX, MX), (LATE, ""), (ROUNDED, ""), (ROUNDED, ROUNDED), ("int8/row/fp32", "e5m2/1x64/e8m0-ceil"),
    ("e4m3fn/32x32/e8m0", ""), ("e4m3fn/1x128/e8m0-ceil", "e4m3fn/1x128/e8m0-ceil"),
    ("e4m3/1x32/fp32", "int8/1x128/fp32/stochastic"), ("e5m2/1x128/fp32", "e4m3fn/1x16/bfloat16"),
)  # fmt: skip
FUSED = ((RUN, RUN), (SQUARE, ""), (ROW, ROW), (GRADIENT, ""), (LATE, ""))
OPERATIONS = (
    "rms_norm", "add_rms_norm", "rms_norm_backward", "swiglu", "smooth_swiglu", "swiglu_backward",
    "smooth_swiglu_backward", "gelu", "gelu_backward",
)  # fmt: skip
TYPES = ("bfloat16", "float32", "float16")
Tensors = tuple[torch.Tensor, ...]


def kernels() -> Any:
    """Return the twin of `narrowcast.passes`."""
    from narrowcast.kernels import passes

    return passes


def arguments(first: str, second: str) -> tuple[Any, Any]:
    """Return the casts of both orientations."""
    return nc.cast(first), nc.cast(second) if second else None


def source(shape: tuple[int, int], seed: int, spread: int = 2) -> torch.Tensor:
    """Return numbers of many sizes, rows of zeros among them."""
    g = torch.Generator(device="cuda").manual_seed(seed)
    x = torch.randn(shape, generator=g, device="cuda")
    x *= torch.exp2(torch.randint(-spread, spread + 1, (shape[0], 1), generator=g, device="cuda").float())
    x[1], x[2, 3] = 0.0, -0.0
    return x


def call(module: Any, operation: str, xs: Tensors, casts: tuple[Any, Any], how: dict[str, Any]) -> Any:
    """Run one operation of `passes`, or its twin, on ``xs``: two tensors and a gradient, of one shape."""
    x, y, g = xs[:3]
    if operation == "quantize":
        return module.quantize_both(x, *casts, **how)
    if operation == "rms_norm":
        return module.rms_norm_both(x, y[0], 1e-6, *casts, **how)
    if operation == "add_rms_norm":
        return module.add_rms_norm_both(x, y, y[0], 1e-5, *casts, **how)
    if operation == "rms_norm_backward":
        return module.rms_norm_backward_both(g, x, y[0], xs[3], y, *casts, **how)
    if operation.startswith("smooth"):
        how = {**how, "scale": module.smooth_scale(y)}
        operation = operation.removeprefix("smooth_")
    if operation == "swiglu":
        return module.swiglu_both(x, y, *casts, **how)
    if operation == "swiglu_backward":
        return module.swiglu_backward_both(g, x, y, *casts, **how)
    return module.gelu_both(x, *casts, **how) if operation == "gelu" else module.gelu_backward_both(g, x, *casts, **how)


# --- bits ---


def parts(found: Any) -> list[torch.Tensor]:
    """Return every tensor of a result."""
    if isinstance(found, QTensor):
        return [found.codes, found.scales]
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in parts(part)]


def difference(operation: str, first: str, second: str, xs: Tensors) -> str | None:
    """Return where kernels and definition disagree, or None."""
    casts = arguments(first, second)
    how: dict[str, Any] = {"stream": Stream(77 << 32 | 5, 3, 2), "across_stream": Stream(9, 4, 1)}
    results, histories = [], []
    for module in (plain, kernels()):
        if casts[0].scale.delayed:
            histories.append(Delayed(16).new("cuda"))
            histories[-1][3] = 1.0
            how["history"] = histories[-1]
        results.append(parts(call(module, operation, xs, casts, how)))
    where = f"{operation} {first} {second} from {xs[0].dtype} {tuple(xs[0].shape)}"
    if histories and not torch.equal(*histories):
        return f"{where}: history"
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{where}: part {i} is {b.dtype} {tuple(b.shape)}, not {a.dtype} {tuple(a.shape)}"
        wrong = ((a != b) & ~(a.isnan() & b.isnan())).nonzero()
        if len(wrong):
            return f"{where}: part {i}: {len(wrong)} of {a.numel()} differ, first at {wrong[0].tolist()}"
    return None


def checks() -> list[tuple[str, str, str, str]]:
    """Return what is compared: operation, casts, dtype."""
    found = [("quantize", a, b, dtype) for a, b in CASTS for dtype in TYPES]
    found += [(op, a, b, TYPES[0]) for op in OPERATIONS for a, b in FUSED]
    return found + [(op, a, b, TYPES[1]) for op in OPERATIONS for a, b in (FUSED[0], FUSED[3])]


def shapes_for(first: str, second: str) -> tuple[tuple[int, int], ...]:
    """Return the shapes that are tried: a large one, and one that blocks do not divide."""
    odd = (384, 128) if "x128" in first + second else (192, 320) if "x" in first + second else (136, 200)
    return (512, 4096), odd


def check(some: list[tuple[str, str, str, str]]) -> list[str]:
    """Return the disagreements; run in several processes, for most of the time goes into compiling."""
    found = []
    for operation, first, second, dtype in some:
        cases = [(first, second, shape) for shape in shapes_for(first, second)]
        if "x128/" in first and "x128/" in (second or first) and "backward" not in operation:
            cases.append((first.replace("x128/", "x128+pad/"), second.replace("x128/", "x128+pad/"), (137, 200)))
        for one, other, shape in cases:
            xs = tuple(source(shape, seed).to(getattr(torch, dtype)) for seed in range(3))
            xs = (*xs, plain.rms_norm(xs[0], xs[1][0], 1e-6)[1])
            poisoned = xs[0].clone()
            poisoned[3, 5], poisoned[70, 9] = math.inf, -math.nan
            for x in (xs[0], poisoned) if operation == "quantize" and nc.cast(one).scale.bits else (xs[0],):
                try:
                    found.append(difference(operation, one, other, (x, *xs[1:])))
                except Exception as error:  # a kernel that fails to compile is a finding, not the end
                    what = f"{operation} {one} {other} {dtype} {shape}"
                    found.append(f"{what}: {type(error).__name__}: {str(error)[-300:]}")
    return [text for text in found if text]


def compiled() -> list[str]:
    """Return what differs where the operators stand in a graph compiled whole."""
    xs, differ = tuple(source((256, 1024), seed).bfloat16() for seed in range(3)), []
    for operation, first, second in (("rms_norm", RUN, RUN), ("swiglu", LATE, ""), ("quantize", SQUARE, SQUARE)):
        casts, module = arguments(first, second), kernels()

        def run(
            history: torch.Tensor, module: Any, operation: str = operation, casts: Any = casts
        ) -> list[torch.Tensor]:
            return parts(call(module, operation, xs, casts, {"history": history}))

        histories = [torch.full((17,), 3.0, device="cuda") for _ in "ab"]
        try:
            found = torch.compile(run, fullgraph=True)(histories[0], module)
        except Exception as error:
            differ.append(f"{operation}: {type(error).__name__}: {str(error)[:300]}")
            continue
        expected = run(histories[1], plain)
        if not all(torch.equal(a, b) for a, b in zip([*found, histories[0]], [*expected, histories[1]], strict=True)):
            differ.append(f"{operation} {first}: compiled whole, other bits")
    return differ


def exhaustive(chunk: int = 1 << 27) -> dict[str, int]:
    """Compare the short quotients with torch's own division over all inputs of their ranges; return what differs."""
    from bench.quick_gpu import quotients, reciprocals

    least, most = 1 << 23, (254 + 1) << 23  # 2**-126, infinity
    found = {"reciprocals": 0, "reciprocals_differ": 0, "quotients": 0, "quotients_differ": 0}
    for first in range(0, most, chunk):
        bits = torch.arange(first, min(first + chunk, most), dtype=torch.int32, device="cuda")
        x = bits.view(torch.float32)
        inside = (bits >= least) & (x <= 2.0**125)
        found["reciprocals"] += int(inside.sum())
        found["reciprocals_differ"] += int((inside & (reciprocals(x) != x.reciprocal())).sum())
        for divisor in (448.0, 57344.0, 240.0, 127.0, 30.0):
            exact = (x / torch.full_like(x, divisor)).clamp_min(2.0**-126)
            found["quotients"] += len(x)
            found["quotients_differ"] += int((quotients(x, divisor).clamp_min(2.0**-126) != exact).sum())
    return found


# --- speed ---

#: bytes an element that are read and written, for bfloat16: with a norm's rms by a pass before, and least
BYTES = {
    "quantize": (4, 4), "rms_norm": (6, 4), "add_rms_norm": (10, 8), "rms_norm_backward": (12, 10), "swiglu": (6, 6),
    "smooth_swiglu": (8, 6), "swiglu_backward": (10, 10), "smooth_swiglu_backward": (12, 10), "gelu": (4, 4),
    "gelu_backward": (6, 6),
}  # fmt: skip
READ = {"swiglu": 4, "smooth_swiglu": 4, "swiglu_backward": 6, "smooth_swiglu_backward": 6, "gelu_backward": 4}
SPEED = (
    *(("quantize", a, b) for a, b in (
        (RUN, RUN), ("e4m3fn/1x128/e8m0-ceil",) * 2, (SQUARE, ""), (ROW, ROW), (TENSOR, ""), (LATE, ""), ("e4m3fn", ""),
        (MX, MX), ("e5m2/tensor/fp32-delayed16", ""), (ROUNDED.replace("fp32", "fp32-delayed16"), ""),
    )),
    *((op, a, b) for op in OPERATIONS for a, b in ((RUN, RUN), (LATE, ""), (ROW, ROW))),
)  # fmt: skip
COMPILED = (("quantize", RUN, RUN), ("quantize", TENSOR, ""), ("rms_norm", RUN, RUN), ("swiglu", RUN, RUN))


def moved(operation: str, first: str, second: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the bytes that the passes move, and the least that any could, for bfloat16."""
    count, (most, least) = math.prod(shape), BYTES[operation]
    made = (shape[0], shape[1] * (2 if "swiglu_backward" in operation else 1))
    casts = [c for c in arguments(first, second) if c is not None]
    scales = sum(c.bits_per_element(made) - c.format.bits for c in casts) * math.prod(made) / 8
    ahead = any(c.scale.needs_amax and c.tile.cols == 0 and not c.scale.delayed for c in casts)
    return round(count * (most + (READ.get(operation, 2) if ahead else 0)) + scales), round(count * least + scales)


def inputs(operation: str, shape: tuple[int, int], count: int) -> list[Tensors]:
    """Return ``count`` sets of inputs; halves of one matrix where a gate takes two."""
    sets = []
    for seed in range(count):
        both = source((shape[0], 2 * shape[1]), seed).bfloat16()
        x, y = both[:, : shape[1]], both[:, shape[1] :]
        if "swiglu" not in operation:
            x, y = x.contiguous(), y.contiguous()
        g = source(shape, seed + 100).bfloat16() if "backward" in operation else x
        inverse = torch.rand(shape[0], 1, device="cuda") + 0.5 if operation == "rms_norm_backward" else x
        sets.append((x, y, g, inverse))
    return sets


def work_of(module: Any, operation: str, first: str, second: str, sets: list[Tensors]) -> Callable[[], Any]:
    """Return a function that runs one operation on each set."""
    casts, how = arguments(first, second), {"stream": Stream(5, 1, 2), "across_stream": Stream(5, 2, 2)}
    hows = [dict(how) for _ in sets]
    if casts[0].scale.delayed:
        for each in hows:
            each["history"] = torch.full((17,), 3.0, device="cuda")
    return lambda: [call(module, operation, xs, casts, each) for xs, each in zip(sets, hows, strict=True)]


def against_copies(work: Callable[[], Any], sizes: tuple[int, ...], count: int, rounds: int) -> dict[str, float]:
    """Return microseconds for one set, and the share of the bandwidth of a copy that moves each of ``sizes`` bytes."""
    graph, shares = graphed(work), []
    for size in sizes:
        lines = torch.randint(0, 255, (count, -(-size // 65536), 32768), dtype=torch.uint8, device="cuda")
        copy = graphed(lambda lines=lines: [torch.clone(source) for source in lines])
        for _ in range(2):
            milliseconds(graph), milliseconds(copy)
        pairs = [(milliseconds(graph), milliseconds(copy)) for _ in range(rounds)]
        shares.append(round(statistics.median(b / a for a, b in pairs), 4))
        del copy, lines
    us = round(statistics.median(a for a, _ in pairs) / count * 1e3, 2)
    return {"us": us, "share": shares[0], "least": shares[-1]}


def speed(shape: tuple[int, int], rounds: int, module: Any, rows: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    """Return the figures of each variant on tensors of ``shape``."""
    count, found = max(2, (1 << 28) // (math.prod(shape) * 2)), {}
    made: dict[str, list[Tensors]] = {}
    for operation, first, second in rows:
        if operation not in made:
            made = {operation: inputs(operation, shape, count)}
        sizes = moved(operation, first, second, shape)
        work = work_of(module, operation, first, second, made[operation])
        try:
            row = against_copies(work, sizes if sizes[0] != sizes[1] else sizes[:1], count, rounds)
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        found[f"{operation}: {first} | {second or 'turned'}"] = {"bytes": sizes[0], **row}
        torch.cuda.empty_cache()
    return found


def warmed(some: list[tuple[str, str, str]]) -> None:
    """Compile what is to be timed, into the cache on disk."""
    for operation, first, second in some:
        for shape in SHAPES:
            work_of(kernels(), operation, first, second, inputs(operation, (256, shape[1]), 1))()


class Compiled:
    """The plain definition, each function compiled whole."""

    def __getattr__(self, name: str) -> Any:
        made = torch.compile(getattr(plain, name), fullgraph=True)
        setattr(self, name, made)
        return made


def show(shape: tuple[int, int], rows: dict[str, Any]) -> None:
    """Print one table."""
    print(f"\n{shape} bfloat16")
    for name, row in rows.items():
        figures = f"{row['us']:8.1f} us  {row['share']:.1%}  least {row['least']:.1%}" if "us" in row else row["failed"]
        print(f"{name:95s} {figures}")


def write(result: dict[str, Any], folder: Path) -> None:
    """Write what there is so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "passes-cuda.json").write_text(json.dumps(result, indent=1) + "\n")


def main(options_given: list[str]) -> None:
    """Check, time, print tables, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="first shape and few rounds; nothing exhaustive")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(options_given)
    if not torch.cuda.is_available():
        raise SystemExit("error: needs a CUDA device")
    import triton

    from narrowcast.io import versions

    start, workers = time.perf_counter(), min(os.cpu_count() or 1, 14)
    result: dict[str, Any] = {"versions": {**versions(), "triton": triton.__version__}}
    every = checks()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        differ = [t for found in pool.map(check, [every[i::workers] for i in range(workers)]) for t in found]
        list(pool.map(warmed, [list(SPEED)[i::workers] for i in range(workers)]))
    result["check"] = {"cases": len(every), "types": list(TYPES), "differ": differ, "compiled": compiled()}
    print("compiled whole:", result["check"]["compiled"] or "the same")
    print(f"{len(every)} cases, {len(differ)} differences, {time.perf_counter() - start:.0f} s", *differ[:20], sep="\n")
    if not options.quick:
        result["exhaustive"] = exhaustive()
        print(result["exhaustive"], f"{time.perf_counter() - start:.0f} s")
    shapes, rounds = (SHAPES[:1], 7) if options.quick else (SHAPES, options.rounds)
    result["speed"] = []
    for shape in shapes:
        rows = speed(shape, rounds, kernels(), SPEED)
        result["speed"].append({"shape": list(shape), "dtype": "bfloat16", "variants": rows})
        show(shape, rows)
        write(result, options.out)
    print(f"{time.perf_counter() - start:.0f} s; the definition compiled:")
    result["compiled"] = {"shape": list(SHAPES[0]), "variants": speed(SHAPES[0], rounds, Compiled(), COMPILED)}
    show(SHAPES[0], result["compiled"]["variants"])
    write(result, options.out)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
