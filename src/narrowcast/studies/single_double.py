"""Study 66: single against double precision, for conjugate gradient and for RMSprop, where least squares are zero."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from narrowcast.optim import SLOPES, VALUES, ConjugateGradient
from narrowcast.optim.line_search import Rule
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.workloads.solvers import conditioned
from narrowcast.workloads.teacher_student import TeacherStudent, network

_SCALES = {"moderate": 1.0, "strong": 5.0}
_BATCH = 64
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Size:
    """How large the study is: networks, seeds, and evaluations of the whole training set per run."""

    networks: tuple[tuple[int, ...], ...] = ((16, 32, 16), (16, 20, 20, 16), (16, 16, 16, 16, 16))
    seeds: int = 5
    evaluations: int = 4000


@dataclass(frozen=True)
class Arm:
    """A precision policy of conjugate gradient.

    Attributes:
        dtype: of the network, its gradient and its targets.
        weights: dtype of the weights and of everything the optimizer does.
        sums: dtype in which the squares are summed.
        rule: what the line search compares.
    """

    dtype: torch.dtype
    weights: torch.dtype
    sums: torch.dtype
    rule: Rule = VALUES


F32, F64 = torch.float32, torch.float64
WIDE, NARROW = Arm(F64, F64, F64), Arm(F32, F32, F32)
_EXTRAS = {
    "float32, line search by slopes": Arm(F32, F32, F32, SLOPES),
    "float32, squares summed in float64": Arm(F32, F32, F64),
    "float32 network, float64 weights and line search": Arm(F32, F64, F64),
}


@dataclass(frozen=True)
class Run:
    """What came of a run: log10 of the unexplained variance in float64, its curve, whether the line search gave up."""

    final: float
    curve: Curve = field(default_factory=list)
    gave_up: bool = False

    @property
    def evaluations(self) -> int:
        """Evaluations spent."""
        return self.curve[-1][0]


def conjugate(task: TeacherStudent, arm: Arm, evaluations: int) -> Run:
    """Train on the whole set by conjugate gradient until the evaluations are spent or no line search improves."""
    x, y = task.inputs().to(arm.dtype), task.targets(arm.dtype)
    weights = [w.to(arm.weights).requires_grad_() for w in task.start()]
    optimizer = ConjugateGradient(weights, rule=arm.rule)

    def closure() -> Tensor:
        for w in weights:
            w.grad = None
        error = network([w.to(arm.dtype) for w in weights], x) - y
        loss = error.to(arm.sums).square().mean()
        loss.backward()
        return loss.detach()

    variance, curve = float(task.targets().var()), []
    while optimizer.evaluations < evaluations and not optimizer.finished:
        loss = optimizer.step(closure)
        curve.append((optimizer.evaluations, loss / variance))
    return Run(unexplained(task, [w.detach() for w in weights]), curve, optimizer.finished)


def rmsprop(tasks: list[TeacherStudent], dtype: torch.dtype, evaluations: int) -> list[Run]:
    """Train one network per task by RMSprop at its usual settings, an epoch per evaluation.

    The tasks (of one shape) run side by side along a leading axis: every operation is elementwise or a batched
    product, so none sees another.
    """
    x, y = (torch.stack(part).to(dtype) for part in zip(*((t.inputs(), t.targets(dtype)) for t in tasks), strict=True))
    starts = zip(*(t.start() for t in tasks), strict=True)
    weights = [torch.stack(w).to(dtype).requires_grad_() for w in starts]
    optimizer = torch.optim.RMSprop(weights, lr=1e-3, alpha=0.9, eps=1e-7)  # Keras's defaults, as the paper's
    order = torch.Generator().manual_seed(0)
    curves: list[Curve] = [[] for _ in tasks]
    for epoch in range(evaluations):
        for batch in torch.randperm(x.shape[1], generator=order).split(_BATCH):
            optimizer.zero_grad()
            (network(weights, x[:, batch]) - y[:, batch]).square().mean((1, 2)).sum().backward()
            optimizer.step()
        if epoch % max(1, evaluations // 100) == 0 or epoch == evaluations - 1:
            with torch.no_grad():
                losses = (network(weights, x) - y).square().mean((1, 2)) / y.flatten(1).var(1)
            for curve, loss in zip(curves, losses.tolist(), strict=True):
                curve.append((epoch + 1, loss))
    return [Run(unexplained(task, [w.detach()[i] for w in weights]), curves[i]) for i, task in enumerate(tasks)]


def unexplained(task: TeacherStudent, weights: list[Tensor]) -> float:
    """Return log10 of (mean squared error over the targets' variance), in float64; -40 where it is zero."""
    y = task.targets()
    share = (network([w.double() for w in weights], task.inputs()) - y).square().mean() / y.var()
    return math.log10(max(float(share), 1e-40))


def run(setting: Setting) -> Outcome:
    """Train every network on both tasks under every arm and compare what is left."""
    size = Size(((3, 5, 3),), 1, 30) if setting.quick else Size()
    found: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for task in _SCALES:
        for hidden, widths in enumerate(size.networks, 1):
            tasks = [TeacherStudent(widths, _SCALES[task], 8.0, 100 * setting.seed + s) for s in range(size.seeds)]
            found[task, hidden] = _arms(tasks, size.evaluations, setting.note, f"{task}, {hidden} hidden")
    tasks = [TeacherStudent(size.networks[0], 1.0, 8.0, 100 * setting.seed + s) for s in range(size.seeds)]
    extras = {name: [conjugate(t, arm, size.evaluations) for t in tasks] for name, arm in _EXTRAS.items()}
    setting.note("the other precision policies are done")
    return Outcome(
        (*_checks(found), *_golden(tasks[0])),
        (_summary(found), _policies({**_main(found["moderate", 1]), **extras})),
        (_curves(found["moderate", 1]),),
        _notes(size),
    )


def _arms(
    tasks: list[TeacherStudent], evaluations: int, note: Callable[[str], None], what: str
) -> dict[str, list[Run]]:
    runs = {
        "CG64": [conjugate(t, WIDE, evaluations) for t in tasks],
        "CG32": [conjugate(t, NARROW, evaluations) for t in tasks],
        "RMSprop64": rmsprop(tasks, F64, evaluations),
        "RMSprop32": rmsprop(tasks, F32, evaluations),
    }
    note(f"{what}: " + ", ".join(f"{name} {_median(r):.2f}" for name, r in runs.items()))
    return runs


def _checks(found: dict[tuple[str, int], dict[str, list[Run]]]) -> list[Check]:
    moderate = {name: _median(runs) for name, runs in found["moderate", 1].items()}
    apart = max(abs(_median(r["RMSprop64"]) - _median(r["RMSprop32"])) for r in found.values())
    checks = [
        at_least("moderate, 1 hidden layer: decades that CG64 lies under CG32", moderate["CG32"] - moderate["CG64"], 1),
        at_least("the same: decades that CG32 lies under RMSprop", moderate["RMSprop32"] - moderate["CG32"], 0.5),
        at_most("RMSprop: largest difference of the precisions' medians over tasks and depths, decades", apart, 0.1),
    ]
    for (task, hidden), runs in found.items():
        if task == "moderate" and hidden > 1:
            gap = _median(runs["RMSprop32"]) - _median(runs["CG32"])
            checks.append(at_least(f"moderate, {hidden} hidden: decades that CG32 lies under RMSprop", gap, 0.5))
        elif task == "strong":
            best = min(_median(r) for r in runs.values())
            checks.append(at_least(f"strong, {hidden} hidden: log10 unexplained variance of the best arm", best, -2))
    return checks


def _golden(task: TeacherStudent) -> list[Check]:
    zero = max(
        float((network([w.to(d) for w in task.teacher()], task.inputs().to(d)) - task.targets(d)).abs().max())
        for d in (F32, F64)
    )
    wide, narrow = (_quadratic(dtype) for dtype in (F64, F32))
    return [
        equal("error of the teacher's own weights, in either precision", zero, 0.0, claim=False),
        at_most("a quadratic of 12 unknowns after 12 steps in float64: relative residual", wide, 1e-9, claim=False),
        at_least("the same in float32", narrow, 1e-9, claim=False),
    ]


def _quadratic(dtype: torch.dtype, n: int = 12) -> float:
    A = conditioned(n, 10.0).to(dtype)
    x = torch.zeros(n, dtype=dtype, requires_grad=True)

    def closure() -> Tensor:
        x.grad = None
        loss = 0.5 * (x - 1) @ (A @ (x - 1))
        loss.backward()
        return loss.detach()

    optimizer = ConjugateGradient([x])
    for _ in range(n):
        optimizer.step(closure)
    ones = torch.ones(n, dtype=F64)
    return float((A.double() @ (x.detach().double() - ones)).norm() / (A.double() @ ones).norm())


def _median(runs: list[Run]) -> float:
    return statistics.median(run.final for run in runs)


def _main(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    return {"float64 throughout": runs["CG64"], "float32 throughout": runs["CG32"]}


def _summary(found: dict[tuple[str, int], dict[str, list[Run]]]) -> dict[str, Any]:
    rows = [
        [task, hidden, *(round(_median(r), 2) for r in runs.values()), *(_spread(runs[name]) for name in ("CG64", "CG32")),
         sum(r.gave_up for r in runs["CG32"]), round(statistics.median(r.evaluations for r in runs["CG32"]))]
        for (task, hidden), runs in found.items()
    ]  # fmt: skip
    arms = list(next(iter(found.values())))
    columns = ["task", "hidden layers", *arms, "CG64, best and worst", "CG32, best and worst",
               "CG32: runs whose line search gave up", "CG32: evaluations, median"]  # fmt: skip
    return {"title": "log10 of the unexplained variance, median over seeds", "columns": columns, "rows": rows}


def _spread(runs: list[Run]) -> str:
    finals = [run.final for run in runs]
    return f"{min(finals):.1f}, {max(finals):.1f}"


def _policies(runs: dict[str, list[Run]]) -> dict[str, Any]:
    rows = [
        [name, round(_median(r), 2), _spread(r), sum(run.gave_up for run in r), round(statistics.median(run.evaluations for run in r))]
        for name, r in runs.items()
    ]  # fmt: skip
    columns = ["precision of CG", "log10 unexplained", "best and worst", "line search gave up", "evaluations, median"]
    return {"title": "Moderate, 1 hidden layer: what of float32 is in the way", "columns": columns, "rows": rows}


def _curves(runs: dict[str, list[Run]]) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    for name, group in runs.items():
        curve = [point for point in group[0].curve if point[1] > 0]
        kept = [*curve[:: max(1, len(curve) // 200)], curve[-1]]
        series.append({"name": name, "x": [x for x, _ in kept], "y": [float(f"{y:.4g}") for _, y in kept]})
    end = runs["CG32"][0]
    if end.gave_up:
        x, y = end.curve[-1]
        series.append({"name": "float32's line search gives up", "x": [x], "y": [y], "mode": "labels"})
    return {"title": "Moderate, 1 hidden layer, first seed", "x": "evaluations of the whole set", "log_y": True,
            "y": "loss over the targets' variance", "series": series}  # fmt: skip


def _notes(size: Size) -> tuple[str, ...]:
    return (
        f"Sizes are ours: about a thousand parameters, 8 equations each, {size.seeds} seeds, {size.evaluations} evaluations; the paper goes to "
        "4 million parameters.",
        "Teacher, inputs and start are the same float32 numbers in both precisions; each computes its own targets, so that zero is attainable in both.",
        "Pre-activations of the teacher have a deviation of about 1 (moderate) and 5 (strong).",
        "An epoch of RMSprop (batches of 64, learning rate 0.001 throughout) counts as one evaluation.",
        "Every final figure is computed in float64 from the weights, whatever they were trained in.",
    )


STUDY = Study(
    number=66,
    title="Training in single against double precision",
    paper="Hrycej, Bermeitinger and Handschuh, Training Neural Networks in Single vs Double Precision",
    claim="Double precision pays for conjugate gradient, which goes on where single precision's line search finds no improvement; RMSprop gains nothing.",
    baseline="conjugate gradient and RMSprop in float32",
    treatment="the same in float64; conjugate gradient with parts in float64",
    measure="log10 of the mean squared error over the targets' variance after equal evaluations, median of 5 seeds",
    expected="CG64 a decade or more under CG32, CG32 under RMSprop on the moderate task; all above 0.01 on the strong one",
    run=run,
)
