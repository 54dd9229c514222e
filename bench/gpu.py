"""What the GPU benchmarks share: timing in interleaved rounds, and where a step's time goes."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

#: words in a kernel's name, and the share that it counts to; the first that fits
KINDS = (
    ("attention", ("sdpa", "flash", "fmha", "cudnn_generated", "attention")),
    ("gemm", ("nvjet", "gemm", "cutlass", "wgmma", "cublas")),
    ("cast", ("quantize_kernel", "amax_kernel", "both_kernel", "maxima_kernel", "transpose_kernel")),
    ("norm and gate", ("inverse_rms", "norm_backward", "smooth_scale", "rms", "swiglu")),
    ("copy", ("memcpy", "memset")),
)


def rounds(work: dict[str, Callable[[], Any]], count: int, warm: int = 2, times: int = 1) -> dict[str, list[float]]:
    """Return milliseconds of each piece of work, by device events: of each in a round ``times`` one after the other."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for i in range(count + warm):
        for name, run in work.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(times):
                run()
            end.record()
            torch.cuda.synchronize()
            if i >= warm:
                found[name].append(start.elapsed_time(end) / times)
    return found


def graphed(work: Callable[[], Any], pool: Any = None) -> torch.cuda.CUDAGraph:
    """Return ``work`` captured, after a warm-up that compiles it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
    return graph


def captured(work: Callable[[], Any], alive: Any, pool: Any = None) -> Callable[[], None]:
    """Return the replay of ``work``; it keeps ``alive``, the owners of the tensors it reads, which a graph does not."""
    graph = graphed(work, pool)

    def replay(alive: Any = (work, alive)) -> None:
        graph.replay()

    return replay


def ratio(base: list[float], times: list[float]) -> float:
    """Return the median over rounds of ``base`` over ``times``."""
    return statistics.median(b / t for b, t in zip(base, times, strict=True))


def peak(run: Callable[[], Any]) -> float:
    """Return the most bytes allocated while ``run`` ran, beyond what was allocated when it began, plus nothing."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())


def shares(run: Callable[[], Any], steps: int = 2) -> dict[str, float]:
    """Return milliseconds per step of each kind of kernel, and of the gaps between kernels."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            run()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    for event in kernels:
        name = event.name.lower()
        kind = next((k for k, words in KINDS if any(w in name for w in words)), "elementwise")
        found[kind] = found.get(kind, 0.0) + event.device_time_total / 1e3 / steps
    if kernels:
        begin = min(e.time_range.start for e in kernels)
        end = max(e.time_range.end for e in kernels)
        found["gaps"] = max((end - begin) / 1e3 / steps - sum(found.values()), 0.0)
    return found


def slowest(run: Callable[[], Any], count: int = 14) -> list[tuple[str, float, int]]:
    """Return (kernel, milliseconds, calls) of the kernels that take longest in one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    rows = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)[:count]
    return [(e.key[:90], e.device_time_total / 1e3, e.count) for e in rows]
