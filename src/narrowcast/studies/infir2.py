"""Study 35: continued training and fine-tuning in E4M3 blocks, under powers of two and under float32 scales."""

import copy
import math
import statistics
from typing import Any

import torch

from narrowcast.nn.linear import Linear
from narrowcast.quantize import cast
from narrowcast.recipes import recipe
from narrowcast.studies.continued import Run, base, carry_on, judged, rows_of, tune
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal

ARMS = ("bf16", "fp8-hybrid", "fp8-block")
_TITLES = {"bf16": "bfloat16", "fp8-hybrid": "FP8, powers of two", "fp8-block": "FP8, float32 scales"}


def run(setting: Setting) -> Outcome:
    """Measure."""
    start = base(setting)
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    exact: dict[str, list[float]] = {name: [] for name in ARMS}
    orders: list[set[str]] = []
    last: dict[str, Run] = {}
    for seed in range(setting.seed, setting.seed + (1 if setting.quick else 3)):
        orders.append(set())
        for name in ARMS:
            found = last[name] = carry_on(start, recipe(name), setting, seed, steps=200)
            orders[-1].add(found.order)
            losses[name].append(statistics.fmean(judged(found.model, domain)[0] for domain in start.domains))
            exact[name].append(100 * tune(found, setting, seed))
            setting.note(f"{name}, seed {seed}: loss {losses[name][-1]:.4f}, words right {exact[name][-1]:.1f} %")
    mean = {name: statistics.fmean(values) for name, values in losses.items()}
    right = {name: statistics.fmean(values) for name, values in exact.items()}
    noise = max(max(values) - min(values) for values in losses.values())
    gaps = {name: 100 * (mean[name] / mean["bf16"] - 1) for name in ARMS}
    apart = abs(mean["fp8-hybrid"] - mean["fp8-block"])
    checks = [
        *_golden(start.model),
        equal(
            "seeds whose arms saw batches in the same order", sum(len(s) == 1 for s in orders), len(orders), claim=False
        ),
        at_most("FP8 under powers of two: loss above bfloat16, %", gaps["fp8-hybrid"], 0.5),
        at_most("FP8 under float32 scales: loss above bfloat16, %", gaps["fp8-block"], 0.5),
        at_most("powers of two or float32 scales: distance over the seeds' range", apart / max(noise, 1e-9), 1.0),
        at_least(
            "fine-tuned, powers of two: words right minus bfloat16's, points", right["fp8-hybrid"] - right["bf16"], -1.0
        ),
        at_least(
            "fine-tuned, float32 scales: words right minus bfloat16's, points", right["fp8-block"] - right["bf16"], -1.0
        ),
    ]
    tables = (
        _table("Continued for 200 steps: nats per token, mean of prose and code", losses),
        _table("Then fine-tuned on words backwards: words without a mistake, %", exact),
    )
    return Outcome(tuple(checks), tables, (_plot(last),), _NOTES)


def _golden(model: torch.nn.Module) -> list[Check]:
    square, tile = cast("e4m3fn/128x128+pad/e8m0-ceil"), cast("e4m3fn/1x128+pad/e8m0-ceil")
    scales = [2.0 ** (float(tile.quantize(torch.full((1, 128), x)).scales) - 127) for x in (1.0, 448.0, 449.0)]
    converted = copy.deepcopy(model)
    recipe("fp8-hybrid").convert(converted, backend="emulate")
    worst = lossy = 0
    for layer in converted.modules():
        if isinstance(layer, Linear):
            once = square.quantize(layer.weight.detach()).dequantize()
            again = square.quantize(once).dequantize()
            lossy += int((once != again).sum())
            worst = max(worst, int(square.quantize(layer.weight.detach()).scales.max()))
    return [
        equal("scales of maxima 1, 448 and 449", str(scales), str([2.0**-8, 1.0, 2.0]), claim=False),
        equal("tokens of 128 x 32768 x 40000, billions", round(128 * 32768 * 40000 / 1e9, 1), 167.8, claim=False),
        equal("weights that change when a converted checkpoint is converted again", lossy, 0, claim=False),
        at_most("largest binade of a weight's scale", float(worst - 127), 0.0, claim=False),
        equal("1 / s is exact", math.frexp(1 / scales[0])[0], 0.5, claim=False),
    ]  # fmt: skip


def _table(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    rows = rows_of({_TITLES[name]: values for name, values in found.items()})
    return {"title": title, "columns": ["arm", "mean", "lowest", "highest"], "rows": rows}


def _plot(last: dict[str, Run]) -> dict[str, Any]:
    series = [
        {"name": _TITLES[name], "x": list(range(1, len(found.losses) + 1)), "y": list(found.losses)}
        for name, found in last.items()
    ]
    return {"title": "Training loss after the switch, last seed", "x": "step", "y": "nats per token", "series": series}


_NOTES = (
    "Continued from a model trained in bfloat16 on other text, with a cold optimizer, warm-up and a stable rate that decays at "
    "the end (WSD); the same batches for all arms.",
    "Fine-tuning in one stage: five symbols are to be answered backwards; a word counts if all five are right.",
    "The paper's differences between scale formats on reasoning tests are single runs; here three seeds decide.",
    "160 billion tokens, Qwen's sizes and a GPU's speed and memory are not reproduced.",
)

STUDY = Study(
    number=35,
    title="Continued training and fine-tuning in FP8 blocks",
    paper="InfiX 2025, InfiR2: A Comprehensive FP8 Training Recipe for Reasoning-Enhanced Language Models",
    claim="Continued training and fine-tuning in E4M3 with 1x128 and 128x128 blocks equal bfloat16, and power-of-two scales do as "
    "well as float32's.",
    baseline="bfloat16 from the same checkpoint, same batches",
    treatment="E4M3 blocks under powers of two rounded up, and under float32 scales",
    measure="validation loss after 200 further steps; words right after fine-tuning; three seeds",
    expected="loss within 0.5 %, words right within a point; the two scale formats not told apart",
    run=run,
    needs=("data",),
)
