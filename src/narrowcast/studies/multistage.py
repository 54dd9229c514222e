"""Study 73: multi-stage networks, a function to double precision; what frequency, precision and one stage alone do."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within
from narrowcast.workloads.multistage import Function, Plan, Stage, evaluate, fit, frequency

_STAGES, _SEEDS = 5, 3
F32 = torch.float32
Errors = list[float]


def target(x: Tensor) -> Tensor:
    """Return sheet 73's function: sin(2x + 1) + 0.2 exp(1.3 x)."""
    return torch.sin(2 * x + 1) + 0.2 * torch.exp(1.3 * x)


def runge(x: Tensor) -> Tensor:
    """Return Runge's function, 1 / (1 + 25 x^2): smooth, but with poles near the interval."""
    return 1 / (1 + 25 * x * x)


@dataclass(frozen=True)
class Arm:
    """One way of fitting: its plan, its function, its number of stages."""

    plan: Plan
    stages: int = _STAGES
    f: Function = target


def arms(plan: Plan, stages: int) -> dict[str, Arm]:
    """Return every arm but the main one, by name; ``plan`` is the main one's."""
    return {
        "one network, trained out": Arm(replace(plan, steps=6 * plan.steps, draws=1, margin=0.0), 1),
        "two stages": Arm(plan, 2),
        "two stages, kappa = 1 and tanh in both": Arm(replace(plan, reach=None), 2),
        "kappa from the largest peak (the paper's)": Arm(replace(plan, reach=1.0, share=0.0), stages),
        "fitted on [-1, 1] only": Arm(replace(plan, margin=0.0), stages),
        "float32 throughout": Arm(replace(plan, dtypes=(F32,), residue=F32), min(stages, 4)),
        "float32 networks from stage 2 on": Arm(replace(plan, dtypes=(torch.float64, F32)), stages),
        "float32 networks from stage 4 on": Arm(replace(plan, dtypes=(*[torch.float64] * 3, F32)), stages),
        "Runge's function": Arm(plan, stages, runge),
    }


def errors(arm: Arm, stages: list[Stage], points: int = 20001) -> Errors:
    """Return the largest error on a fine grid over [-1, 1] after each stage, sums in the plan's residue dtype."""
    x = torch.linspace(-1, 1, points, dtype=torch.float64)
    sums = [evaluate(stages[: k + 1], x.to(arm.plan.residue)).double() for k in range(len(stages))]
    return [float((arm.f(x) - total).abs().max()) for total in sums]


def run(setting: Setting) -> Outcome:
    """Fit every arm and compare how fast the error falls and where it ends."""
    plan = Plan(width=6, points=120, steps=6, draws=1) if setting.quick else Plan()
    count, seeds = (2, 1) if setting.quick else (_STAGES, _SEEDS)
    main, found, fits = Arm(plan, count), {}, []
    for s in range(seeds):
        fits.append(fit(main.f, count, plan, setting.seed + 100_000 * s))
        found[f"multi-stage, seed {s}"] = _noted(setting, f"seed {s}", errors(main, fits[-1]))
    for name, arm in arms(plan, count).items():
        found[name] = _noted(setting, name, errors(arm, fit(arm.f, arm.stages, arm.plan, setting.seed)))
    ours = [found[f"multi-stage, seed {s}"] for s in range(seeds)]
    return Outcome(
        (*_checks(ours, found), *_golden(fits[0])),
        (_table(found, count), _stages(fits[0]), _peer()),
        (_plot(found),),
        _NOTES,
    )


def _noted(setting: Setting, name: str, found: Errors) -> Errors:
    setting.note(f"{name}: " + ", ".join(f"{e:.1e}" for e in found))
    return found


def _short(value: float) -> float:
    """Return two significant digits."""
    return float(f"{value:.2g}")


def _gains(found: Errors) -> list[float]:
    return [math.log10(a / b) for a, b in pairwise(found)]


def _checks(ours: list[Errors], found: dict[str, Errors]) -> list[Check]:
    second, plain = (_gains(found[f"two stages{kind}"])[0] for kind in ("", ", kappa = 1 and tanh in both"))
    final = statistics.median(e[-1] for e in ours)
    single, narrow = found["one network, trained out"][-1], found["float32 throughout"][-1]
    return [
        at_least("smallest gain of a stage, any seed, decades", min(min(_gains(e)) for e in ours), 1.5),
        at_most("largest error of the worst seed", max(e[-1] for e in ours), 1e-10),
        at_most("largest error, median seed", final, 1e-13),
        at_least("decades by which it lies under one network, trained out", math.log10(single / final), 6),
        at_most("second stage with kappa = 1 and tanh: its decades over ours", plain / second, 1 / 3),
        within("float32 throughout: log10 of the largest error", math.log10(narrow), -6.5, 0.75),
    ]


def _golden(stages: list[Stage]) -> list[Check]:
    x = torch.linspace(-1, 1, 4096, dtype=torch.float64)
    pitch = frequency(torch.sin(14 * math.pi * x), 2.0, share=0)
    total, parts = evaluate(stages, x), torch.zeros_like(x)
    for stage in stages:
        parts = parts + stage(x)
    return [
        within("kappa of sin(14 pi x), 2 pi times its frequency", 2 * math.pi * pitch, 43.98, 0.01, claim=False),
        equal("sum of the stages minus the prediction", float((total - parts).abs().max()), 0.0, claim=False),
    ]


def _table(found: dict[str, Errors], count: int) -> dict[str, Any]:
    rows = [[name, *map(_short, e_all), *[""] * (count - len(e_all))] for name, e_all in found.items()]
    columns = ["fit", *(f"stage {k}" for k in range(1, count + 1))]
    return {"title": "Largest error on a grid of 20001 points after each stage", "columns": columns, "rows": rows}


def _stages(stages: list[Stage]) -> dict[str, Any]:
    rows = [
        [k, _short(s.magnitude), round(s.frequency, 1), round(s.network.kappa, 1), s.steps, _short(s.rms)]
        for k, s in enumerate(stages, 1)
    ]
    columns = ["stage", "magnitude", "frequency, cycles per unit", "kappa", "steps", "left over, rms"]
    return {"title": "Stages of seed 0", "columns": columns, "rows": rows}


def _peer() -> dict[str, Any]:
    """What approximation theory does with the same functions: Chebyshev interpolants."""
    x, rows = np.linspace(-1, 1, 20001), []
    functions: dict[str, Callable[[Tensor], Tensor]] = {"sheet's function": target, "Runge's function": runge}
    for name, f in functions.items():
        values = f(torch.from_numpy(x)).numpy()
        for degree in (8, 16, 24, 180):
            series = np.polynomial.Chebyshev.interpolate(lambda t, f=f: f(torch.from_numpy(t)).numpy(), degree)
            rows.append([name, degree + 1, _short(np.abs(series(x) - values).max())])
    return {"title": "Beside it: Chebyshev interpolation", "columns": ["function", "coefficients", "largest error"],
            "rows": rows}  # fmt: skip


def _plot(found: dict[str, Errors]) -> dict[str, Any]:
    series = [
        {"name": name, "x": list(range(1, len(e) + 1)), "y": e, "mode": "lines+markers"} for name, e in found.items()
    ]
    return {
        "title": "Largest error after each stage",
        "x": "stages",
        "y": "largest error",
        "log_y": True,
        "series": series,
    }


_NOTES = (
    "Stages are 3 layers of 20, the sheet's. They are fitted by Levenberg and Marquardt in at most 40 steps, not by Adam and L-BFGS.",
    "A stage but the last ends at a thousandth of its target, so that what it leaves is still smooth; kappa follows the frequency below "
    "which 90 % of the residue's energy lies, times 3; the first stages are fitted beyond [-1, 1], up to 1.2; the best of four draws is kept.",
    "The function and the residues are in float64 unless said otherwise; its rounding is about 2e-16 where the function is 1.",
    "Two-dimensional regression and physics-informed networks were not tried.",
    "For smooth functions of one variable Chebyshev interpolation does about the same with 25 coefficients; the claim is about networks.",
)

STUDY = Study(
    number=73,
    title="Multi-stage networks to double precision",
    paper="Wang and Lai 2023, Multi-stage neural networks: function approximator of machine precision",
    claim="Networks trained one after another on what is left, rescaled in magnitude and frequency, reach double precision where one network stalls.",
    baseline="one network of the same size, trained out; kappa = 1 and tanh in every stage; float32 throughout",
    treatment="five stages of 3 x 20, each with its magnitude and frequency taken from the residue",
    measure="largest error on a fine grid over [-1, 1], 3 seeds",
    expected="1.5 decades or more a stage, 1e-13 or less in the end; a third of the gain without the frequency; float32 ends near 3e-7",
    run=run,
)
