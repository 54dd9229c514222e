"""Study 76: weights stored narrow and decoded in registers, just before float32 arithmetic, on this CPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from narrowcast.formats import Format, Minifloat, format
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal

Work = Callable[[], Tensor]
_BYTES = {"float32": 4, "bfloat16": 2, "e5m2": 1, "e4m3fn": 1, "posit8_0": 1, "posit16_1": 2}
_TABLE = ("posit8_0", "posit16_1")
_GOLDEN = {0x20: 0.5, 0x40: 1.0, 0x5F: 1.96875, 0x70: 4.0, 0x7C: 16.0, 0x7F: 64.0}  # posit(8,0), sheet 76


def widen(codes: Tensor, fmt: Minifloat) -> Tensor:
    """Return float32 values of finite 8-bit codes in five operations: shift the fields into float32's, move the bias.

    Subnormals come out right by themselves: the multiplication normalises them. NaN and infinity codes do not.
    """
    codes = codes.int()
    bits = ((codes & 0x80) << 24) | ((codes & 0x7F) << (23 - fmt.mantissa))
    return bits.view(torch.float32) * 2.0 ** (127 - fmt.bias)


def _stored(name: str, w: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return (what lies in memory, how it becomes float32)."""
    fmt: Format = format(name)
    if name == "float32":
        return w, lambda t: t
    if name == "bfloat16":
        return w.bfloat16(), lambda t: t.float()
    codes = fmt.encode(w)
    if name in _TABLE:
        return (codes if fmt.bits == 8 else codes.to(torch.int16)), fmt.decode
    assert isinstance(fmt, Minifloat)
    return codes, lambda t: widen(t, fmt)


#: a piece of x is then 16 KB; one of 32 KB no longer stays in the first cache, and a product takes twice as long
_COLUMNS = 4096


def _pieces(w: Tensor) -> Tensor:
    """Return ``w [N, K]`` as contiguous pieces ``[K / columns, N, columns]``: the layout is ours to choose."""
    pieces: Tensor = w.unflatten(-1, (-1, min(w.shape[-1], _COLUMNS)))
    return pieces.movedim(-2, 0).contiguous()


def _decoded(wide: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the compiled product of held pieces and a vector ``[K]`` that decodes as it goes."""

    def product(held: Tensor, x: Tensor) -> Tensor:
        y: Tensor = (wide(held) * x.view(held.shape[0], 1, -1)).sum(-1).sum(0)
        return y

    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(product, fullgraph=True, dynamic=False)
    return compiled


def _bound(product: Callable[[Tensor, Tensor], Tensor], held: Tensor, x: Tensor) -> Work:
    return lambda: product(held, x)


def _products(size: int, names: tuple[str, ...], seed: int) -> dict[str, tuple[Work, Tensor]]:
    """Return per format (a compiled matrix-vector product that decodes as it goes, the exact answer of its weights)."""
    torch.compiler.reset()  # dynamo allows one function eight versions; every size starts with none
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(size, size, generator=g), torch.randn(size, generator=g)
    made: dict[str, tuple[Work, Tensor]] = {}
    for name in names:
        held, wide = _stored(name, w)
        exact = wide(held).double() @ x.double()
        made[name] = _bound(_decoded(wide), _pieces(held), x), exact
    made["float32, library"] = (lambda: torch.mv(w, x)), w.double() @ x.double()
    return made


def _seconds(work: dict[str, Work], rounds: int) -> dict[str, float]:
    """Return the median time of each, all taken in turn within each round."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for fn in work.values():
        fn()
    for _ in range(rounds):
        for name, fn in work.items():
            start = time.perf_counter()
            fn()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _at(size: int, names: tuple[str, ...], setting: Setting) -> tuple[dict[str, float], float]:
    """Return (seconds per format, largest relative error of any product)."""
    made = _products(size, names, setting.seed)
    worst = max(float((work() - exact).abs().max() / exact.abs().max()) for work, exact in made.values())
    times = _seconds(
        {name: work for name, (work, _) in made.items()}, 3 if setting.quick else min(300, max(9, 2**27 // size**2))
    )
    times["float32"] = min(times["float32"], times.pop("float32, library"))  # the baseline is the faster of two
    setting.note(f"{size} x {size}: " + ", ".join(f"{n} {1e3 * t:.3f} ms" for n, t in times.items()))
    return times, worst


def _batches(size: int, seed: int, quick: bool) -> list[list[Any]]:
    """Return [batch, ms of float32, ms of decoding for every column] rows: where decoding again stops paying."""
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(size, size, generator=g), torch.randn(32, size, generator=g)
    held, wide = _stored("bfloat16", w)
    held = _pieces(held)
    fused = _decoded(wide)
    rows: list[list[Any]] = []
    for batch in (1, 2) if quick else (1, 2, 4, 8, 16):
        some = x[:batch]
        work: dict[str, Work] = {
            "float32": lambda some=some: some @ w.mT,  # type: ignore[misc]
            "bfloat16": lambda some=some: torch.stack([fused(held, v) for v in some]),  # type: ignore[misc]
        }
        times = _seconds(work, 3 if quick else 9)
        rows.append([batch, 1e3 * times["float32"], 1e3 * times["bfloat16"], times["float32"] / times["bfloat16"]])
    return rows


def _predicted(times: dict[int, dict[str, float]], name: str, size: int) -> float:
    """Return a roofline's seconds: bytes over the bandwidth that float32 reaches, or the cache-resident rate, if more.

    The least size is next to nothing but the call; its time is taken off the cache-resident rate and put on the sum.
    """
    call, small, large = sorted(times)[0], sorted(times)[1], max(times)
    bandwidth = 4 * large**2 / times[large]["float32"]
    resident = (times[small][name] - times[call][name]) / small**2 * size**2
    return times[call][name] + max(_BYTES[name] * size**2 / bandwidth, resident)


def run(setting: Setting) -> Outcome:
    """Time every format at every size, then batches, and hold both against the roofline."""
    sizes = (64, 256) if setting.quick else (64, 1024, 2048, 4096, 8192)
    names = tuple(_BYTES)[: 2 if setting.quick else None]
    found = {size: _at(size, names, setting) for size in sizes}
    times, worst = {size: t for size, (t, _) in found.items()}, max(error for _, error in found.values())
    large = max(sizes)
    gain = {name: times[large]["float32"] / times[large][name] for name in names}
    narrow = [name for name in names if name not in ("float32", *_TABLE)]
    off = {name: _predicted(times, name, large) / times[large][name] for name in narrow}
    posit = format("posit8_0")
    golden = {code: float(posit.decode(torch.tensor([code]))) for code in _GOLDEN}
    checks: list[Check] = [
        at_least(f"bfloat16 storage over float32, {large} x {large}, times faster", gain["bfloat16"], 1.4),
        at_most(
            f"roofline over measured, furthest from 1, {large} x {large}", max(max(r, 1 / r) for r in off.values()), 1.3
        ),
        at_most("largest relative error of a product against float64", worst, 1e-4, claim=False),
        equal("posit(8,0): values of six published codes", str(golden), str(_GOLDEN), claim=False),
    ]
    if "e5m2" in gain:
        checks.insert(
            1, at_least(f"8-bit storage (e5m2) over float32, {large} x {large}, times faster", gain["e5m2"], 1.4)
        )
    rows = [[size, *(1e3 * times[size][n] for n in names)] for size in sizes]
    rates = [[size, *(_BYTES[n] * size**2 / times[size][n] / 1e9 for n in names)] for size in sizes]
    batches = _batches(min(large, 4096), setting.seed, setting.quick)
    tables = (
        {"title": "Matrix times vector, ms", "columns": ["size", *names], "rows": rows},
        {"title": "Bytes of weights read, GB/s", "columns": ["size", *names], "rows": rates},
        {
            "title": "Roofline over measured at the largest size",
            "columns": ["format", "ratio"],
            "rows": [[n, r] for n, r in off.items()],
        },
        {
            "title": "Several vectors: float32 product against bfloat16 decoded anew for each",
            "columns": ["vectors", "float32, ms", "bfloat16, ms", "times faster"],
            "rows": batches,
        },
    )
    plot = {"title": "Times faster than float32", "x": "rows and columns", "y": "float32 time / time", "log_x": True,
            "series": [{"name": n, "x": list(sizes), "y": [times[s]["float32"] / times[s][n] for s in sizes], "mode": "lines+markers"} for n in names if n != "float32"]}  # fmt: skip
    notes = (
        "Compiled C++ reads the narrow weights, decodes them in registers and sums in float32; float32 is the faster of the same code and the library's product.",
        "bfloat16 and the 8-bit floats decode by shifts, posits through a table of all values.",
        "Narrow weights lie in pieces of 4096 columns, so that the vector's part stays in the first cache; laid out in rows of 8192, bfloat16 took twice as long.",
        "64 x 64 is next to nothing but the call of a compiled function, which is what holds small sizes back.",
        "The paper's machine, a RISC-V with vectors, is not here: what is measured is this CPU, and conditional on it.",
    )
    return Outcome(tuple(checks), tables, (plot,), notes)


STUDY = Study(
    number=76,
    title="Compressed real numbers: decode just before use",
    paper="Compressed Real Numbers for AI: a case-study using a RISC-V CPU",
    claim="Storing weights in bfloat16 or 8 bits and decoding them just before float32 arithmetic makes memory-bound products faster.",
    baseline="float32 weights, the faster of a library product and the same compiled loop",
    treatment="bfloat16, e5m2 and e4m3fn decoded by shifts, posit(8,0) and posit(16,1) through tables",
    measure="milliseconds and GB/s of a matrix-vector product from cache-resident sizes to 8192 x 8192; batches",
    expected="at least 1.4 times faster for bfloat16 where the matrix lies in memory; a roofline within 30 %",
    run=run,
    needs=("compiler",),
)
