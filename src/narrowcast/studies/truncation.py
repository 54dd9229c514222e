"""Study 84: a whole network truncated to a narrow format after every batch; accuracy against its bits."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from narrowcast.analysis.propagation import conditions, measured, predicted, relative_error
from narrowcast.analysis.truncation import Run, Trained, cliff, sweep
from narrowcast.models.stacked import StackedMlp
from narrowcast.optim import truncate_
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within
from narrowcast.workloads.images import mnist

MANTISSAS, EXPONENTS, SEEDS = tuple(range(1, 11)), tuple(range(3, 9)), 3
RATE, WIDTH = Run().rate, 32
MODES = ("toward-zero", "nearest-even", "stochastic")


def forward_errors(network: StackedMlp, x: Tensor) -> list[list[Any]]:
    """Return ``[layers, mode, bits, predicted, measured, ratio]``, the float32 run's trained weights rounded once."""
    weights = [w[0, 0].detach() for w in network.weights]
    biases = [b[0, 0].detach() for b in network.biases]
    kappas, before, rows = conditions(weights, biases, x), _outputs(weights, biases, x), []
    for mode in MODES:
        for bits in MANTISSAS:
            narrow = [w.clone() for w in weights]
            truncate_(narrow, f"e8m{bits}", mode)
            found = measured(before, _outputs(narrow, biases, x))
            expected = predicted(kappas, relative_error(bits, mode))
            rows.append([len(weights), mode, bits, expected, found, found / expected])
    return rows


def _outputs(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> Tensor:
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight + bias
        x = x.relu() if i < len(weights) - 1 else x
    return x


def golden() -> list[Check]:
    """Check the sheet's worked truncations."""
    values = torch.tensor([1.99, -1.99, 0.3])
    truncate_([values], "e8m2")
    x = torch.exp2(torch.rand(200_000, generator=torch.Generator().manual_seed(1)))
    narrow = x.clone()
    truncate_([narrow], "e8m7")
    words = torch.equal(narrow.view(torch.int32), x.view(torch.int32) & ~0xFFFF)
    mean = float(((x - narrow) / x).mean()) / 2.0**-8
    down = torch.tensor([1.0 - 0.001])
    truncate_([down], "e8m7")
    return [
        equal("1.99, -1.99, 0.3 to 2 bits", str(values.tolist()), "[1.75, -1.75, 0.25]", claim=False),
        equal("7 bits are bfloat16's truncation", str(words), "True", claim=False),
        within("mean relative error over 2**-(M+1)", mean, 0.7213, 0.005, claim=False),
        within("w = 1, update -0.001, 7 bits", down.item(), 0.99609375, 0.0, claim=False),
    ]


def columns(setting: Setting) -> list[Run]:
    """Return the columns of the sweep: the grid truncated, and at 8 exponent bits the other modes and other rates."""
    mantissas, exponents = ((3, 10), (8,)) if setting.quick else (MANTISSAS, EXPONENTS)
    runs = [Run()] + [Run(e, m, MODES[0]) for e in exponents for m in mantissas]
    runs += [Run(8, m, mode) for mode in MODES[1:] for m in mantissas]
    for rate in () if setting.quick else (RATE / 3, RATE * 3):
        runs += [Run(rate=rate), *(Run(8, m, mode, rate) for mode in MODES[:2] for m in mantissas)]
    return runs


def _line(found: Trained, mode: str, exponent: int = 8, rate: float = RATE) -> list[float]:
    return [found.of(Run(exponent, m, mode, rate)) for m in MANTISSAS]


def claims(found: Trained, errors: list[list[Any]]) -> list[Check]:
    """Return the claim's checks."""
    full = found.of(Run())
    cut, near, dithered = (cliff(MANTISSAS, _line(found, mode), full) for mode in MODES)
    line = _line(found, MODES[0])
    worst = max(max(row[5], 1 / row[5]) for row in errors if row[2] >= 3)
    return [
        at_most("truncated to E8M10: accuracy lost, %", full - line[-1], 1.0),
        at_least(
            "largest fall of accuracy over one bit, truncated, E8, %",
            max(b - a for a, b in pairwise(line)),
            20.0,
        ),
        within("bits by which nearest-even moves the cliff", cut - near, 1.0, 0.75),
        at_least("bits by which stochastic rounding moves it further", near - dithered, 0.25),
        at_most("forward error, 3 bits and more: measured and predicted apart, times", worst, 3.0),
        at_most("truncation shrinks: weights at E8M5 relative to float32", found.shrunk(Run(8, 5, MODES[0])), 0.99),
    ]


def run(setting: Setting) -> Outcome:
    """See the study's protocol."""
    train, test = mnist(setting.folder("mnist"))
    seeds = [setting.seed + i for i in range(1 if setting.quick else SEEDS)]
    test = test.head(200 if setting.quick else 2000)
    found = sweep(columns(setting), train, test, (WIDTH,) * 2, seeds=seeds, steps=2 if setting.quick else 0)
    setting.note(f"float32: {found.of(Run()):.2f} % of {len(test)} test digits")
    if setting.quick:
        lost = found.of(Run()) - found.of(Run(8, 10, MODES[0]))
        return Outcome((*golden(), at_most("accuracy lost, %", lost, 100.0)))
    depths: dict[int, Trained] = {}
    errors = forward_errors(found.network, test.pixels.flatten(1))
    for layers in (1, 3):
        cut = [Run(), *(Run(8, m, MODES[0]) for m in MANTISSAS)]
        depths[layers] = sweep(cut, train, test, (WIDTH,) * layers, seeds=seeds)
        errors += forward_errors(depths[layers].network, test.pixels.flatten(1))
    return Outcome((*golden(), *claims(found, errors)), _tables(found, depths, errors), _plots(found, errors), NOTES)


def _tables(found: Trained, depths: dict[int, Trained], errors: list[list[Any]]) -> tuple[dict[str, Any], ...]:
    bits = [f"M={m}" for m in MANTISSAS]
    grid = [[f"E={e}, toward-zero", *_line(found, MODES[0], e)] for e in EXPONENTS]
    grid += [[f"E=8, {mode}", *_line(found, mode)] for mode in MODES[1:]]
    size = [[mode, *(found.shrunk(Run(8, m, mode)) for m in MANTISSAS)] for mode in MODES]
    title = f"Accuracy, %, mean of {SEEDS} seeds; float32 {found.of(Run()):.2f}"
    return (
        {"title": title, "columns": ["parameters", *bits], "rows": grid},
        {"title": "Size of the weights relative to float32's", "columns": ["E=8", *bits], "rows": size},
        {
            "title": "Where the cliff is, E=8",
            "columns": ["network", "float32 accuracy, %", "mantissa bits"],
            "rows": _cliffs(found, depths),
        },
        {
            "title": "Forward error of rounded weights",
            "columns": ["layers", "rounding", "M", "predicted", "measured", "ratio"],
            "rows": errors,
        },
    )


def _cliffs(found: Trained, depths: dict[int, Trained]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for rate in (RATE / 3, RATE, RATE * 3):
        full = found.of(Run(rate=rate))
        for mode in MODES[:2]:
            at = cliff(MANTISSAS, _line(found, mode, 8, rate), full)
            rows.append([f"2 hidden layers, learning rate {rate:.3g}, {mode}", full, at])
    for layers, deep in depths.items():
        at = cliff(MANTISSAS, _line(deep, MODES[0]), deep.of(Run()))
        rows.append([f"{layers} hidden, learning rate {RATE}, toward-zero", deep.of(Run()), at])
    return rows


def _plots(found: Trained, errors: list[list[Any]]) -> tuple[dict[str, Any], ...]:
    x = list(MANTISSAS)
    lines = [(f"E={e}, toward-zero", _line(found, MODES[0], e)) for e in EXPONENTS]
    lines += [(f"E=8, {mode}", _line(found, mode)) for mode in MODES[1:]]
    series = []
    for mode in MODES:
        rows = [row for row in errors if row[:2] == [3, mode]]
        series.append({"name": f"{mode}, predicted", "x": x, "y": [row[3] for row in rows], "mode": "lines"})
        series.append({"name": f"{mode}, measured", "x": x, "y": [row[4] for row in rows], "mode": "markers"})
    accuracy = [{"name": name, "x": x, "y": y, "mode": "lines+markers"} for name, y in lines]
    error = {
        "title": "Forward error, three layers",
        "y": "relative error of the logits",
        "log_y": True,
        "series": series,
    }
    return (
        {"title": "Accuracy", "x": "mantissa bits", "y": "test accuracy, %", "series": accuracy},
        {"x": "mantissa bits", **error},
    )


NOTES = (
    "The paper is known here by its abstract: that only parameters are truncated, after each batch, that what lies "
    "beyond the range is clamped and what lies below it is flushed by way of subnormals is our reading.",
    f"784-{WIDTH}-{WIDTH}-10 with ReLU, SGD at {RATE}, batches of 64, three passes over 8,000 digits; 2,000 to test.",
    "The cliff is where accuracy crosses 95 % of float32's, interpolated between whole bits.",
    "Truncation after every batch is a drift, not one error of half a bit: small updates away from zero are lost and "
    "those towards it cost a whole step, so nearest-even is worth more than the bit that rounding once would be.",
)

STUDY = Study(
    number=84,
    title="Truncating a whole network after every batch",
    paper="Li, Ma, Vajiac and Zhang 2018, Exploration of Numerical Precision in Deep Neural Networks",
    claim="Accuracy falls off a cliff at some number of bits; a first-order model predicts a network's forward error.",
    baseline="a small multilayer perceptron on real digits, float32 throughout",
    treatment="all parameters truncated after each batch to 1-10 mantissa and 3-8 exponent bits; other roundings",
    measure="test accuracy over three seeds; relative error of the logits after rounding the trained weights once",
    expected="a clear cliff, a bit earlier under nearest-even, earlier yet under stochastic; errors within 3 times",
    run=run,
    needs=("data",),
)
