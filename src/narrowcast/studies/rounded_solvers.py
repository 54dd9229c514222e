"""A part of study 93: every operation of an iterative solver rounded, and what iterative refinement gets back."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from narrowcast.formats import format
from narrowcast.formats import round as round_to
from narrowcast.studies.study import Check, at_least, at_most
from narrowcast.workloads.solvers import (
    Rounding,
    conditioned,
    conjugate_gradient,
    exact,
    gauss_seidel,
    history,
    jacobi,
    poisson,
    power_iteration,
    refinement,
)

FORMATS = ("e4m3fn", "posit8_1", "bfloat16", "float16", "tf32", "posit16_1", "float32")
FLOATS = ("bfloat16", "float16", "tf32", "float32")  # whose precision is the same throughout their range
Solver = Callable[[Tensor, Tensor, Rounding], Iterator[Tensor]]
_SOLVERS: dict[str, Solver] = {
    "conjugate gradient": conjugate_gradient,
    "Jacobi": jacobi,
    "Gauss-Seidel": gauss_seidel,
}


def inside(name: str, mode: str = "nearest-even") -> Rounding:
    """Return the rounding of every operation to a format; a stochastic mode draws afresh at each."""
    count = iter(range(10**9))
    return lambda x: round_to(x, name, mode, seed=next(count))


def solvers(side: int, sweeps: int) -> tuple[dict[str, Any], list[Check]]:
    """Return (table of the smallest residuals that each solver reaches, checks); the 2-D Poisson equation."""
    A = poisson(side)  # small integers: exact in every format
    b = torch.randn(len(A), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {
        name: {s: min(history(A, round_to(b, name), make(A, round_to(b, name), inside(name)), sweeps), default=1.0)
               for s, make in _SOLVERS.items()}
        for name in FORMATS
    }  # fmt: skip
    rows = [[name, *map(_short, found[name].values()), _eigenvalue(A, b, name, sweeps)] for name in FORMATS]
    columns = ["format", *_SOLVERS, "power iteration: error of the eigenvalue"]
    title = f"Every operation rounded: smallest relative residual in {sweeps} iterations, {len(A)} unknowns"
    spans = [_decades([found[name][s] for name in FLOATS]) for s in _SOLVERS]
    span = _decades([2.0 ** -(format(name).precision + 1) for name in FLOATS])
    checks = [
        at_least(
            "solvers: decades of residual per decade of unit roundoff, bfloat16 to float32", min(spans) / span, 0.7
        ),
        at_most("the same, the steepest solver", max(spans) / span, 1.3),
    ]
    return {"title": title, "columns": columns, "rows": rows}, checks


def refined(n: int, condition: float = 30.0) -> tuple[dict[str, Any], list[Check]]:
    """Return (table of refinement over LU in each format, check that float64 comes back)."""
    A = conditioned(n, condition, symmetric=False)
    b = A @ torch.ones(n, dtype=torch.float64)
    rows, ends = [], []
    for name in ("bfloat16", "float16", "tf32", "posit16_1", "float32"):
        residuals = history(A, b, refinement(A, b, inside(name), exact, exact), 40)
        steps = next((i for i, r in enumerate(residuals) if r < 1e-14), None)
        ends.append(min(residuals))
        rows.append([name, _short(residuals[0]), _short(ends[-1]), "never" if steps is None else steps])
    columns = ["LU and its solves in", "first residual", "last residual", "corrections to 1e-14"]
    title = f"Iterative refinement, residual and update in float64: {n} unknowns, condition {condition:g}"
    check = at_most("refinement over a narrow LU: largest final residual of five formats", max(ends), 1e-14)
    return {"title": title, "columns": columns, "rows": rows}, [check]


def measure(quick: bool) -> tuple[tuple[dict[str, Any], ...], list[Check]]:
    """Return the tables and checks of this part."""
    solved, checks = solvers(4, 20) if quick else solvers(6, 180)
    mended, more = refined(8) if quick else refined(32)
    return (solved, mended), [*checks, *more]


def _eigenvalue(A: Tensor, start: Tensor, name: str, sweeps: int) -> float | str:
    largest = float(torch.linalg.eigvalsh(A)[-1])
    values = [
        float(v)
        for (v, _), _ in zip(power_iteration(A, round_to(start, name), inside(name)), range(sweeps), strict=False)
    ]
    return _short(abs(values[-1] - largest) / largest) if values else "none"


def _short(value: float) -> float:
    """Return two significant digits."""
    return float(f"{value:.2g}")


def _decades(values: list[float]) -> float:
    return math.log10(values[0] / values[-1])
