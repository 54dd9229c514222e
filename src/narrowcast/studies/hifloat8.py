"""Study 27: HiFloat8, one tapered 8-bit float for forward and backward, without scales."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from narrowcast.analysis.distributions import NORMAL
from narrowcast.analysis.loss import decibels
from narrowcast.analysis.sites import probe
from narrowcast.formats import format
from narrowcast.formats.rounding import rounding
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.recipes.recipe import LossScale
from narrowcast.studies.small_training import Spread, over_seeds
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.through import Hybrid, Through

#: code -> value: the ends of every row of the published table, and its special codes
VALUES = {
    0x00: 0.0, 0x01: 2.0**-22, 0x07: 2.0**-16, 0x08: 1.0, 0x0F: 1.875, 0x10: 2.0, 0x17: 3.75, 0x18: 0.5, 0x1F: 0.9375,
    0x20: 4.0, 0x27: 7.5, 0x28: 8.0, 0x2F: 15.0, 0x30: 0.25, 0x37: 0.46875, 0x38: 0.125, 0x3F: 0.234375, 0x40: 16.0,
    0x47: 56.0, 0x4F: 224.0, 0x50: 2.0**-4, 0x5F: 0.013671875, 0x60: 256.0, 0x68: 4096.0, 0x6E: 32768.0,
    0x6F: math.inf, 0x70: 2.0**-8, 0x7F: 4.57763671875e-05,
}  # fmt: skip
#: ties away from zero: value -> code
AWAY = {
    1.0625: 0x09, 1.06: 0x08, 1.9375: 0x10, 15.5: 0x40, 15.4: 0x2F, 18.0: 0x41, 17.9: 0x40, 30.0: 0x44, 40959.0: 0x6E,
    40960.0: 0x6F, 1.5 * 2.0**-16: 0x7E, 1.4999 * 2.0**-16: 0x07, 2.0**-23: 0x01, 2.0**-24: 0x00, 1.5 * 2.0**-22: 0x02,
}  # fmt: skip
#: hybrid rounding as published: value -> value
HYBRID = {17.0: 20.0, 18.0: 20.0, 300.0: 384.0, 16.001: 16.0, 20.0: 24.0, 3.1: 3.0}
_AWAY = rounding("nearest-away")
_NAMES = ("hif8", "e4m3fn", "e5m2")


def run(setting: Setting) -> Outcome:
    """Measure."""
    curves = _curves(setting)
    losses = {chosen.name: over_seeds(chosen, setting, steps=120) for chosen in RECIPES}
    flushed = {name: _flushed(found) for name, found in losses.items()}
    checks = [*_golden(), *_range_checks(curves), *_training_checks(losses)]
    tables = (_unscaled_table(setting), _bias_table(setting), _training_table(losses, flushed))
    return Outcome(tuple(checks), tables, (_curve_plot(curves),), _NOTES)


def _rounded(name: str, x: Tensor) -> Tensor:
    """Round as the format's paper does: HiFloat8 ties away, the others to even."""
    return format(name).round(x, _AWAY) if name == "hif8" else format(name).round(x)


def _golden() -> list[Check]:
    fmt = format("hif8")
    decoded = fmt.decode(torch.tensor(list(VALUES), dtype=torch.uint8)).double()
    wrong = int((decoded != torch.tensor(list(VALUES.values()), dtype=torch.float64)).sum())
    encoded = fmt.encode(torch.tensor(list(AWAY), dtype=torch.float64), _AWAY)
    missed = int((encoded != torch.tensor(list(AWAY.values()))).sum())
    published = Hybrid(strict=False).round(torch.tensor(list(HYBRID)))
    off = int((published != torch.tensor(list(HYBRID.values()))).sum())
    values = fmt.values().float()
    moved = int((Hybrid().round(values) != values).sum())
    return [
        equal(f"wrong values of {len(VALUES)} published codes", wrong, 0, claim=False),
        equal(f"wrong codes of {len(AWAY)} published encodings, ties away", missed, 0, claim=False),
        equal(f"wrong values of {len(HYBRID)} published hybrid roundings", off, 0, claim=False),
        equal("finite values", len(values), 253, claim=False),
        equal("values of the format that strict hybrid rounding moves", moved, 0, claim=False),
    ]


# --- without any scale ---


def _sqnr(name: str, x: Tensor) -> float:
    """Return the SQNR in dB of ``x`` without a scale; 0 where nothing is left or something became infinite."""
    error = _rounded(name, x).double() - x.double()
    return decibels(float(x.double().square().sum()), float(error.square().sum())) or 0.0


def _curves(setting: Setting) -> dict[str, list[tuple[int, float]]]:
    """Return, per format, (log2 sigma, SQNR of N(0, sigma^2)) over 52 binades."""
    x = NORMAL.sample((1 << (12 if setting.quick else 18),), setting.seed)
    return {name: [(k, _sqnr(name, x * 2.0**k)) for k in range(-32, 20)] for name in _NAMES}


def _reach(curve: list[tuple[int, float]], least: float) -> int:
    """Return over how many binades of sigma the SQNR is at least ``least`` dB."""
    return sum(value >= least for _, value in curve)


def _range_checks(curves: dict[str, list[tuple[int, float]]]) -> list[Check]:
    reaches = {name: _reach(curve, 12.0) for name, curve in curves.items()}
    unit = {name: dict(curve)[0] for name, curve in curves.items()}
    return [
        at_least("binades of sigma with 12 dB or more: HiF8 over E4M3", reaches["hif8"] - reaches["e4m3fn"], 1),
        at_least("binades of sigma with 12 dB or more: HiF8 over E5M2", reaches["hif8"] - reaches["e5m2"], 1),
        at_least("N(0,1): HiF8 over E5M2, dB", unit["hif8"] - unit["e5m2"], 3.0),
        at_least("N(0,1): HiF8 over E4M3, dB", unit["hif8"] - unit["e4m3fn"], -1.0),
    ]


def _curve_plot(curves: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    series = [{"name": name, "x": [k for k, _ in curve], "y": [v for _, v in curve]} for name, curve in curves.items()]
    axes = {"x": "log2 of the standard deviation", "y": "SQNR, dB"}
    return {"title": "Normal values without any scale", "series": series, "wide": True, **axes}


def _unscaled_table(setting: Setting) -> dict[str, Any]:
    x = NORMAL.sample((1 << (12 if setting.quick else 18),), setting.seed)
    sources = {"N(0,1)": x, "N(0,10^2)": 10 * x, "N(0,0.001^2)": 1e-3 * x, "log-normal, exp(N(0,2^2))": (2 * x).exp()}
    rows = [[label, *(f"{_sqnr(name, values):.2f}" for name in _NAMES)] for label, values in sources.items()]
    return {"title": "SQNR in dB without any scale", "columns": ["values", *_NAMES], "rows": rows}


def _bias_table(setting: Setting) -> dict[str, Any]:
    """Show what hybrid rounding does to data that came from 16 bits."""
    x = 50 * NORMAL.sample((1 << (14 if setting.quick else 20),), setting.seed)
    rows = []
    for label, values in (("float32", x), ("bfloat16", x.bfloat16().float())):
        values = values[values.abs() >= 16]
        for rule in (Hybrid(strict=False), Hybrid()):
            rows.append([label, str(rule), f"{float((rule.round(values) / values - 1).mean()):+.5f}"])
    columns = ["source", "rounding", "mean relative error"]
    return {"title": "Hybrid rounding of N(0,50^2) beyond 16", "columns": columns, "rows": rows}


# --- training ---


def _recipe(name: str, forward: Cast, backward: Cast | None = None, scale: bool = True) -> Recipe:
    """Return the recipe of all six operands without scales, under one loss scale or none."""
    gradient = backward or forward
    spec = LinearSpec(Gemm(forward, forward), Gemm(gradient, gradient), Gemm(gradient, gradient))
    return Recipe(name, "no scales", "sheet 27", spec, LossScale() if scale else None)


_HIF8, _E4M3 = cast("hif8/tensor/one/nearest-away"), cast("e4m3fn")
_HYBRID = replace(_HIF8, format=Through(Hybrid(), format("hif8")))
HYBRID_NAME = "HiF8, hybrid rounding backward, loss scale"
RECIPES = (
    recipe("fp32"),
    _recipe("HiF8, loss scale", _HIF8),
    _recipe(HYBRID_NAME, _HIF8, _HYBRID),
    _recipe("HiF8, no loss scale", _HIF8, scale=False),
    _recipe("E4M3, loss scale", _E4M3),
    _recipe("E4M3, no loss scale", _E4M3, scale=False),
)


def _flushed(found: Spread) -> float:
    """Return the mean share of output gradients that became zero."""
    if not found.last.conversion.narrow:
        return 0.0
    shares = [loss.underflow for loss in probe(found.last.model, found.last.probe_batch) if loss.operand == "dgrad.g"]
    return sum(shares) / len(shares)


def _training_checks(found: dict[str, Spread]) -> list[Check]:
    base = found["fp32"]
    bound = max(2 * base.deviation, 1e-3)
    gap = {name: one.mean - base.mean for name, one in found.items()}
    name = "over float32, nats per token (bound: two standard deviations)"
    return [
        at_most(f"training in HiF8 {name}", gap["HiF8, loss scale"], bound),
        at_most(f"training in HiF8, hybrid rounding backward, {name}", gap[HYBRID_NAME], bound),
        at_least(f"training in E4M3 without any scale {name}", gap["E4M3, no loss scale"], bound),
    ]  # fmt: skip


def _training_table(found: dict[str, Spread], flushed: dict[str, float]) -> dict[str, Any]:
    rows = [[s.name, f"{s.mean:.4f}", f"{s.deviation:.4f}", s.listed, f"{flushed[s.name]:.2%}"] for s in found.values()]
    columns = ["recipe", "mean", "standard deviation", "by seed", "gradients flushed without the loss scale"]
    return {"title": "Training a small Llama: final validation loss, nats per token", "columns": columns, "rows": rows}


_NOTES = (
    "No tensor has a scale. Training has one dynamic loss scale where said, from 65,536 on; what is flushed is counted "
    "on gradients of the bare loss.",
    "A Llama of half a million parameters, 120 updates of 512 tokens of tiny Shakespeare, three seeds; operands are "
    "made from float32, which hybrid rounding needs: from bfloat16 it is biased by a tenth, as the table shows.",
    "Rounding is to nearest, ties away, as the paper has it; the hybrid rule was read in its cast specification and is "
    "used strictly (exact values stay).",
    "HiF8 saves no time on a GPU without it, and none was measured.",
)

STUDY = Study(
    number=27,
    title="HiFloat8",
    paper="Luo et al. 2024, Ascend HiFloat8 Format for Deep Learning",
    claim="One tapered 8-bit float serves forward and backward without scales per tensor, with results like 16 bits.",
    baseline="float32; unscaled E4M3 and E5M2",
    treatment="HiF8 for all six operands, ties away; hybrid rounding backward",
    measure="SQNR without scales over 52 binades; validation loss over three seeds",
    expected="more binades than E5M2, as precise as E4M3 around 1; training within the noise of float32",
    run=run,
    needs=("data",),
)
