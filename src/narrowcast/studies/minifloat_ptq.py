"""Study 16: minifloats and integers of 3 to 8 bits, post-training, against what their arithmetic costs."""

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from narrowcast.analysis.hardware import mac
from narrowcast.formats import Format, Minifloat, Specials, format
from narrowcast.ptq import Learned, LeastError, Solver
from narrowcast.ptq.bias import correct_biases
from narrowcast.ptq.recipe import PtqRecipe, Scheme, Smooth
from narrowcast.quantize import Cast, cast
from narrowcast.studies.study import Outcome, Setting, Study, at_least, equal
from narrowcast.studies.vision import SmallVit, digits, quantized, resnet20, runs, score, trained
from narrowcast.workloads import Images

_ENDS = {"ResNet20": ("conv1", "linear"), "ViT": ("patches", "head")}  # first and last layer stay wide
_TECHNIQUES = ("absmax", "mse scales", "bias correction", "SmoothQuant", "learned rounding", "GPTQ")


def _formats(bits: int) -> list[Format]:
    """Return int and every eEmM of ``bits`` bits without infinities and NaN, bias 2**(E-1) - 1."""
    splits = [(e, bits - 1 - e) for e in range(1, min(bits - 1, 5) + 1)]
    return [format(f"int{bits}")] + [
        Minifloat(f"e{e}m{m}", e, m, (1 << (e - 1)) - 1, Specials.NONE) for e, m in splits if (e, m) != (1, 0)
    ]


def _recipe(fmt: Format, net: str, **how: Any) -> PtqRecipe:
    row, tensor = cast("int8/row/fp32"), cast("int8/tensor/fp32")
    scheme = Scheme(replace(row, format=fmt), replace(tensor, format=fmt), static=True)
    return PtqRecipe(f"{fmt}", "", "", scheme, keep_wide=_ENDS[net], **how)


def _with(technique: str, fmt: Format, net: str) -> PtqRecipe:
    match technique:
        case "mse scales":
            return _recipe(fmt, net, search=LeastError(2.0, 40))
        case "SmoothQuant":
            return _recipe(fmt, net, balance=Smooth())
        case "learned rounding":
            return _recipe(fmt, net, search=LeastError(2.0, 40), solver=Learned())
        case "GPTQ":
            return _recipe(fmt, net, search=LeastError(2.0, 40), solver=Solver())
        case _:
            return _recipe(fmt, net)


def _corrected(model: nn.Module, fmt: Format, net: str, calibration: Images) -> nn.Module:
    changed = quantized(model, _recipe(fmt, net), calibration)
    original = {name: p.detach() for name, p in copy.deepcopy(model).named_parameters()}
    correct_biases(changed, original, runs(changed, calibration), _ENDS[net])
    return changed


def _sweep(model: nn.Module, net: str, calibration: Images, test: Images, setting: Setting) -> list[dict[str, Any]]:
    found = []
    for bits in (4,) if setting.quick else range(3, 9):
        for fmt in _formats(bits)[: 2 if setting.quick else None]:
            reached = score(quantized(model, _recipe(fmt, net), calibration), test)
            unit = mac(fmt, fmt)
            found.append({"net": net, "bits": bits, "format": fmt.name, "accuracy": reached, "gates": unit.gates})
        setting.note(f"{net}: {bits} bits done")
    return found


def _techniques(model: nn.Module, net: str, calibration: Images, test: Images, setting: Setting) -> list[list[Any]]:
    rows = []
    for fmt in [f for f in _formats(4) if f.name in ("int4", "e2m1", "e3m0")][: 1 if setting.quick else None]:
        row: list[Any] = [net, fmt.name]
        for technique in _TECHNIQUES:
            if technique == "SmoothQuant" and net == "ResNet20":
                row.append(None)  # a convolution's input channels are not the columns of its matrix
                continue
            if technique == "bias correction":
                changed = _corrected(model, fmt, net, calibration)
            else:
                changed = quantized(model, _with(technique, fmt, net), calibration)
            row.append(score(changed, test))
        setting.note(f"{net} {fmt}: techniques done")
        rows.append(row)
    return rows


def _best(rows: list[dict[str, Any]], net: str, bits: int, integer: bool) -> float:
    return max(
        (
            r["accuracy"]
            for r in rows
            if r["net"] == net and r["bits"] == bits and r["format"].startswith("int") == integer
        ),
        default=0.0,
    )


def _pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that none beats in both accuracy and gates."""
    return [r for r in rows if not any(o["accuracy"] > r["accuracy"] and o["gates"] <= r["gates"] for o in rows)]


def _uniform_equals_int() -> str:
    """e1mM under its own maximum is INT(M + 2), symmetric: the same values for the same input."""
    import torch

    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    e1m2 = Cast(_formats(4)[1], *_row())
    int4 = Cast(format("int4"), *_row())
    return "equal" if torch.equal(e1m2.apply(x), int4.apply(x)) else "different"


def _row() -> tuple[Any, Any]:
    found = cast("int8/row/e8m0")
    return found.tile, found.scale


def run(setting: Setting) -> Outcome:
    """Sweep formats and techniques over both networks."""
    train, test = digits(setting)
    vit = trained(SmallVit, setting, train, epochs=15)
    resnet, pictures, exact = resnet20(setting)
    nets = {"ViT": (vit, train.head(256), test.head(2000)), "ResNet20": (resnet, pictures, exact)}
    if setting.quick:
        del nets["ResNet20"]
    rows, gains = [], []
    for net, (model, calibration, held) in nets.items():
        rows += _sweep(model, net, calibration, held, setting)
        gains += _techniques(model, net, calibration, held, setting)
    wide = {net: score(model, held) for net, (model, _, held) in nets.items()}
    better = [max(v for v in row[3:] if v is not None) - row[2] for row in gains]
    checks = [
        at_least("best 4-bit minifloat minus INT4 on the ViT, points", _best(rows, "ViT", 4, False) - _best(rows, "ViT", 4, True), 0.0),
        at_least("smallest gain of the best technique over absmax at 4 bits, points", min(better), 0.0),
        at_least("integers on the accuracy-gates front of ResNet20", sum(r["format"].startswith("int") for r in _pareto([r for r in rows if r["net"] == "ResNet20"])), 1),
        equal("e1m2 and int4 under power-of-two scales", _uniform_equals_int(), "equal", claim=False),
    ]  # fmt: skip
    table = {"title": "Accuracy, percent", "columns": ["network", "bits", "format", "accuracy", "gates of a MAC"],
             "rows": [[r["net"], r["bits"], r["format"], r["accuracy"], r["gates"]] for r in rows]}  # fmt: skip
    tricks = {
        "title": "Techniques at 4 bits, accuracy in percent",
        "columns": ["network", "format", *_TECHNIQUES[: len(gains[0]) - 2]],
        "rows": gains,
    }
    plots = [
        {"title": f"{net}: accuracy against gates ({wide[net]:.2f} in float32)", "x": "gates of a multiply-accumulate", "y": "accuracy, percent",
         "log_x": True, "log_y": False, "series": [
             {"name": kind, "mode": "labels", "x": [r["gates"] for r in some], "y": [r["accuracy"] for r in some], "text": [r["format"] for r in some]}
             for kind, some in (("integers", [r for r in rows if r["net"] == net and r["format"].startswith("int")]),
                                ("minifloats", [r for r in rows if r["net"] == net and not r["format"].startswith("int")]))]}
        for net in nets
    ]  # fmt: skip
    notes = (
        "First and last layers stay wide. Weights have one scale per output channel, activations one static scale per tensor.",
        "Gates are those of an exact (Kulisch) accumulator of 1024 products: a model, not a synthesis; the paper's own constants were not to be had.",
        "Cross-layer equalization was not tried: nothing between two convolutions of a ResNet with batch normalisation absorbs its factors here.",
    )
    return Outcome(tuple(checks), (tricks, table), tuple(plots), notes)


STUDY = Study(
    number=16,
    title="Minifloats and integers after training, against the cost of their arithmetic",
    paper="Aggarwal et al. 2024, Shedding the Bits: Post-Training Quantization with Minifloats and Integers on FPGAs",
    claim="Few-bit minifloats hold accuracy at least as well as integers, most of all on transformers; integers stay on the cost front.",
    baseline="INT3 to INT8, symmetric, same scales, and each format rounded to nearest under absmax scales",
    treatment="every eEmM of 3 to 8 bits; searched scales, bias correction, SmoothQuant, learned rounding, GPTQ at 4 bits",
    measure="accuracy of ResNet20 on exact CIFAR-10 test pictures and of a small ViT on MNIST; gates of an exact MAC",
    expected="at 4 bits the best minifloat >= INT4 on the ViT; techniques gain; integers among the cheapest at their accuracy",
    run=run,
    needs=("data",),
)  # fmt: skip
