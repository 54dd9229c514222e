"""Study 93: every operation of a trained network rounded, by significand width, format and rounding mode."""

import copy
from typing import Any

import torch
from torch import nn

from narrowcast.arithmetic import Arithmetic, arithmetic
from narrowcast.formats import Format, format, rounding
from narrowcast.metrics import accuracy
from narrowcast.models.vision import cifar_resnet
from narrowcast.optim import truncate_
from narrowcast.studies import rounded_solvers
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.workloads.images import Images, cifar10

WIDTHS = tuple(range(1, 11))
FORMATS = ("e4m3", "e5m2", "e4m3fn", "posit8_1", "bfloat16", "float16", "tf32", "posit16_1", "q5.10")
DIRECTED = ("toward-zero", "up", "down")
MODES = ("nearest-even", "nearest-away", "odd", *DIRECTED, "stochastic", "stochastic-equal")
MODE_WIDTHS = (3, 4, 5, 6)
PICTURES = 200


def accuracy_in(model: nn.Module, images: Images, name: str, mode: str, seed: int) -> tuple[float, Arithmetic]:
    """Return (accuracy in percent, table of operations) of a model whose every number is in one format."""
    narrow = copy.deepcopy(model)
    state = [t for t in (*narrow.parameters(), *narrow.buffers()) if t.is_floating_point()]
    pictures = images.pixels.clone()
    truncate_([*state, pictures], name, mode, seed)
    with arithmetic(name, rounding=mode, seed=seed) as ops:
        found = accuracy(narrow, Images(pictures, images.labels).batches(50))
    return found, ops


def golden() -> list[Check]:
    """Check the sheet's table of formats and its worked roundings."""
    unit = {name: 2.0 ** -(fmt.precision + 1) for name, fmt in _named().items()}
    facts = {name: (unit[name], fmt.max, fmt.smallest) for name, fmt in _named().items()}
    x = torch.tensor([1.06, -1.06, 1.9999, -1.9999])
    worked = [_round("e4m3", x, mode) for mode in ("nearest-even", "up", "down", "toward-zero")]
    ties = torch.tensor([65519.0, 65520.0, 2.0**-25, 1.5 * 2.0**-25])
    codes = format("bfloat16").encode(torch.tensor([1, torch.pi, 0.1, 1 / 3, 1.00390625, 1.01171875]))
    y = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    mirrored = all(
        _round(name, y, "up") == [-v for v in _round(name, -y, "down")] for name in ("e4m3", "e5m2", "bfloat16")
    )
    return [
        equal("unit roundoff, maximum, smallest of four formats", str(facts == _FACTS), "True", claim=False),
        equal("e4m3 of 1.06, -1.06, 1.9999, -1.9999 by four modes", str(worked == _WORKED), "True", claim=False),
        equal("float16 of 65519, 65520, 2**-25, 1.5 * 2**-25", str(_round("float16", ties)), str(_TIES), claim=False),
        equal("bfloat16 codes", " ".join(f"{c:04X}" for c in codes.tolist()), _CODES, claim=False),
        equal("up(x) = -down(-x)", str(mirrored), "True", claim=False),
    ]


def _named() -> dict[str, Format]:
    return {name: format(name) for name in _FACTS}


def _round(name: str, x: torch.Tensor, mode: str = "nearest-even") -> list[float]:
    found: list[float] = format(name).round(x, rounding(mode)).tolist()
    return found


#: sheet 93: unit roundoff, largest, smallest positive
_FACTS = {
    "float16": (2.0**-11, 65504.0, 2.0**-24),
    "bfloat16": (2.0**-8, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
    "e4m3": (2.0**-4, 240.0, 2.0**-9),
    "e5m2": (2.0**-3, 57344.0, 2.0**-16),
}
_WORKED = [[1.0, -1.0, 2.0, -2.0], [1.125, -1.0, 2.0, -1.875], [1.0, -1.125, 1.875, -2.0], [1.0, -1.0, 1.875, -1.875]]
_TIES = [65504.0, float("inf"), 0.0, 2.0**-24]
_CODES = "3F80 4049 3DCD 3EAB 3F80 3F82"


def harmonic(mode: str, terms: int, seed: int) -> float:
    """Return the sum of 1/k in bfloat16, each operation rounded."""
    total = torch.zeros(())
    with arithmetic("bfloat16", rounding=mode, seed=seed):
        for k in range(1, terms + 1):
            total = total + 1 / torch.tensor(float(k))
    return total.item()


def claims(full: float, widths: list[float], modes: dict[str, list[float]], setting: Setting) -> list[Check]:
    """Return the claim's checks from accuracies by width (nearest-even) and by mode at `MODE_WIDTHS`."""
    enough = next((i for i, width in enumerate(MODE_WIDTHS) if widths[width - 1] >= full - 2), len(MODE_WIDTHS) - 1)
    width, near = f"{MODE_WIDTHS[enough]} bits", modes["nearest-even"][enough]
    best, dithered = max(modes[mode][enough] for mode in DIRECTED), modes["stochastic"][enough]
    stalled, going = harmonic("nearest-even", 400, 0), harmonic("stochastic", 400, setting.seed)
    return [
        at_most("10 mantissa bits: accuracy lost, %", full - widths[-1], 1.0),
        at_most("1 mantissa bit: accuracy, %", widths[0], full / 2),
        at_most(f"{width}: best directed mode's accuracy, % (nearest-even {near:.1f})", best, near - 2),
        at_least(f"{width}: stochastic's accuracy, % (nearest-even {near:.1f})", dithered, near - 4),
        equal("harmonic series in bfloat16, nearest-even, stands still at", stalled, 5.0625),
        at_least("the same, stochastic, after 400 terms (exact 6.57)", going, 6.0),
    ]


def run(setting: Setting) -> Outcome:
    """See the study's protocol."""
    folder = setting.folder("cifar10")
    model = cifar_resnet(folder / "resnet20.safetensors")
    images = cifar10(folder)[1].head(8 if setting.quick else PICTURES)
    full = accuracy(model, images.batches(50))

    def measure(name: str, mode: str = "nearest-even") -> float:
        found, _ = accuracy_in(model, images, name, mode, setting.seed)
        setting.note(f"{name}, {mode}: {found:.1f} % of {len(images)}, float32 {full:.1f} %")
        return found

    solved, kept = rounded_solvers.measure(setting.quick)
    if setting.quick:
        return Outcome(
            (*golden(), *kept, at_most("float16: accuracy lost, %", full - measure("float16"), 100.0)), solved
        )
    widths = [measure(f"e8m{m}") for m in WIDTHS]
    named = [[name, format(name).bits, measure(name)] for name in FORMATS]
    modes = {mode: [measure(f"e8m{m}", mode) for m in MODE_WIDTHS] for mode in MODES}
    _, ops = accuracy_in(model, images.head(50), "bfloat16", "nearest-even", setting.seed)
    by_width = [list(pair) for pair in zip(WIDTHS, widths, strict=True)]
    by_mode = [[mode, *values] for mode, values in modes.items()]
    met = [[row.op, row.calls, row.became, row.why] for row in ops.rows()]
    title = f"Accuracy by mantissa bits, 8 exponent bits, nearest-even; float32 {full:.1f} %"
    tables: tuple[dict[str, Any], ...] = (
        {"title": title, "columns": ["mantissa bits", "accuracy, %"], "rows": by_width},
        {"title": "Accuracy by format, unscaled", "columns": ["format", "bits", "accuracy, %"], "rows": named},
        {"title": "Accuracy by mode, %", "columns": ["mode", *(f"e8m{m}" for m in MODE_WIDTHS)], "rows": by_mode},
        {"title": "One pass of 50 pictures", "columns": ["operation", "calls", "became", "why"], "rows": met},
    )
    series = [{"name": "nearest-even", "x": list(WIDTHS), "y": widths, "mode": "lines+markers"}]
    series += [{"name": mode, "x": list(MODE_WIDTHS), "y": modes[mode], "mode": "lines+markers"} for mode in MODES[1:]]
    plot = {"title": "Accuracy", "x": "mantissa bits", "y": "accuracy, %", "series": series}
    return Outcome((*golden(), *claims(full, widths, modes, setting), *kept), (*tables, *solved), (plot,), NOTES)


NOTES = (
    "Parameters, batch norm statistics and pictures are rounded once, then every result: convolutions, norms, sums, "
    "means. The additions inside a convolution are float32.",
    f"{PICTURES} exact test pictures: half a percent is one of them; on the whole test set this network has 91.78 %.",
    "That every mode agrees with exact rational arithmetic on every format of at most 8 bits is a contract test here; "
    "pychop itself differs in overflow, in round to odd, and in ties of negative numbers. Speed beside pychop: README.",
)

STUDY = Study(
    number=93,
    title="Every operation rounded: what width and rounding mode cost a classifier",
    paper="Carson and Chen 2025, Pychop: Emulating Low-Precision Arithmetic in Numerical Methods and Neural Networks",
    claim="Accuracy collapses below some significand width; directed modes do worse than nearest, stochastic is near.",
    baseline="a trained ResNet20 on CIFAR-10 pictures in float32",
    treatment="all parameters and every operation's result rounded: 1 to 10 mantissa bits, nine formats, eight modes",
    measure="accuracy on exact test pictures; a harmonic series in bfloat16; residuals of iterative solvers",
    expected="a collapse; where nearest is within 2 % of float32, directed modes lose 2 % more, stochastic under 4 %; "
    "residuals in proportion to the unit roundoff",
    run=run,
    needs=("data",),
)
