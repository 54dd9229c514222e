"""Study 52: 4-bit weights with 4- or 8-bit inputs, in integers and floats, under several methods; two small models."""

import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.metrics import accuracy
from narrowcast.models import SmallVit
from narrowcast.ptq import Percentile, Solver
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe, Scheme, Smooth
from narrowcast.quantize import cast
from narrowcast.studies.block_formats import logits_of
from narrowcast.studies.stories import Stories, load_stories
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.vision import digits, quantized, trained

#: (weights, inputs) of each survey row
W4A8 = (("int4", "int8"), ("int4", "e4m3fn"), ("e2m1fn", "int8"), ("e2m1fn", "e4m3fn"), ("e1m2fn", "e4m3fn"))
W4A4 = (("int4", "int4"), ("e2m1fn", "e2m1fn"), ("e1m2fn", "e1m2fn"), ("int4", "e2m1fn"))
METHODS = ("plain", "SmoothQuant", "GPTQ", "ABFP-64")
_NEAR = 0.05  # of the language model's bits per byte
_NEAR_POINTS = 1.0  # of the classifier's accuracy in percent
#: figures by (weights, inputs, method)
Survey = dict[tuple[str, str, str], float]


def recipe_of(weights: str, inputs: str, method: str) -> PtqRecipe:
    """Return the recipe of one survey row: weights per channel and inputs per tensor by their maxima.

    ABFP-64 gives every 64 elements of either side a bfloat16 scale instead (adaptive block floating point).
    """
    scheme = Scheme(cast(f"{weights}/row/fp32"), cast(f"{inputs}/tensor/fp32"))
    if method == "ABFP-64":
        scheme = Scheme(cast(f"{weights}/1x64+pad/bfloat16"), cast(f"{inputs}/1x64+pad/bfloat16"))
    plain = PtqRecipe(f"{weights}, {inputs}, {method}", "survey", "INT-FP-QSim", scheme)
    more: dict[str, PtqRecipe] = {
        "SmoothQuant": replace(plain, balance=Smooth()),
        "GPTQ": replace(plain, solver=Solver()),
    }
    return more.get(method, plain)


def run(setting: Setting) -> Outcome:
    """Measure."""
    stories = load_stories(setting, calibrate=2 if setting.quick else 20)
    wide = stories.bits_per_byte(stories.model)
    language = _survey(partial(_language, stories), setting)
    vision = _vision(setting)
    checks = [*_golden(stories), *_language_checks(wide, language), *_vision_checks(vision)]
    tables = (_language_table(wide, language), _vision_table(vision))
    return Outcome(tuple(checks), tables, (_plot(wide, language),), _NOTES)


def _survey(measure: Callable[[PtqRecipe], float], setting: Setting) -> Survey:
    pairs = (W4A8[0], W4A4[0]) if setting.quick else (*W4A8, *W4A4)
    found = {}
    for weights, inputs in pairs:
        for method in METHODS:
            found[weights, inputs, method] = measure(recipe_of(weights, inputs, method))
            setting.note(f"{weights}, {inputs}, {method}: {found[weights, inputs, method]:.4f}")
    return found


# --- golden checks ---


def _golden(stories: Stories) -> list[Check]:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    uniform, integers = (cast(f"{name}/tensor/fp32").apply(x) for name in ("e1m2fn", "int4"))
    by_hand = (x * 7 / x.abs().amax()).round().clamp(-7, 7) * (x.abs().amax() / 7)
    levels = (cast("e2m1fn/tensor/fp32").apply(torch.linspace(-6, 6, 4801)[None]).unique().abs() * 2).int().tolist()
    ratio = Percentile(99.0).ratio(torch.arange(101.0)[None], cast("int8/row/fp32"))
    assert ratio is not None
    off = {
        "E1M2 under a scale of its maximum: values that differ from 4-bit integers": _differ(uniform, integers),
        "4-bit integers: values that differ from clamp(round(7 x / max), -7, 7)": _differ(integers, by_hand),
        "identity casts: logits that differ": _identity(stories),
    }
    text = ", ".join(map(str, sorted(set(levels))))
    return [
        *(equal(name, count, 0, claim=False) for name, count in off.items()),
        equal("E2M1 levels times two", text, "0, 1, 2, 3, 4, 6, 8, 12", claim=False),
        equal("99th percentile of 0 to 100", round(float(ratio) * 100, 4), 99.0, claim=False),
    ]


def _differ(a: Tensor, b: Tensor) -> int:
    return int((a - b).abs().gt(1e-6).sum())


@torch.no_grad()
def _identity(stories: Stories) -> int:
    """Return how many logits change when every layer is swapped for one whose casts do nothing."""
    same = copy.deepcopy(stories.model)
    quantize_model(same, PtqRecipe("identity", "", "", Scheme(cast("float32"), cast("float32"))), [])
    batch = stories.batches[0]
    return int((logits_of(same, batch) != logits_of(stories.model, batch)).sum())


# --- the language model ---


@torch.no_grad()
def _language(stories: Stories, recipe: PtqRecipe) -> float:
    """Return bits per byte after ``recipe``, calibrated on stories that are not judged."""
    model = copy.deepcopy(stories.model)
    quantize_model(model, recipe, [partial(logits_of, model, batch) for batch in stories.calibration])
    return stories.bits_per_byte(model)


def _best(found: Survey, pairs: tuple[tuple[str, str], ...], method: str | None = None) -> float:
    """Return the least figure of ``pairs`` under ``method``, or under any."""
    return min(v for (w, x, m), v in found.items() if (w, x) in pairs and method in (None, m))


def _language_checks(wide: float, found: Survey) -> list[Check]:
    lost = {method: _best(found, W4A4, method) / wide - 1 for method in METHODS}
    return [
        at_most("language model, best W4A8: bits per byte lost, share", _best(found, W4A8) / wide - 1, _NEAR),
        at_least("language model, plain W4A4: bits per byte lost, share", lost["plain"], _NEAR),
        at_least(
            "language model, W4A4: plain over ABFP-64, share of bits per byte", lost["plain"] - lost["ABFP-64"], 0.0
        ),
        equal("language model, W4A4: best method", min(lost, key=lost.__getitem__), "ABFP-64"),
    ]


def _language_table(wide: float, found: Survey) -> dict[str, Any]:
    title = f"Language model: bits per byte (float32 {wide:.4f})"
    return {"title": title, "columns": ["weights", "inputs", *METHODS], "rows": _rows(found, ".4f")}


def _rows(found: Survey, style: str) -> list[list[str]]:
    pairs = list(dict.fromkeys((w, x) for w, x, _ in found))
    return [[w, x, *(format(found[w, x, method], style) for method in METHODS)] for w, x in pairs]


def _plot(wide: float, found: Survey) -> dict[str, Any]:
    pairs = list(dict.fromkeys((w, x) for w, x, _ in found))
    words = [f"{w}, {x}" for w, x in pairs]
    series = [
        {"name": m, "x": words, "y": [found[w, x, m] - wide for w, x in pairs], "mode": "lines+markers"}
        for m in METHODS
    ]
    axes = {"x": "weights, inputs", "y": "bits per byte lost"}
    return {"title": "Language model: what each method loses", "series": series, "wide": True, "log_y": True, **axes}


# --- the vision transformer ---


def _vision(setting: Setting) -> dict[str, Any]:
    """Train a ViT per seed and survey each; return accuracies in percent: ``wide`` by seed, ``surveys`` by seed."""
    train, test = digits(setting)
    tests, calibration = test.head(64 if setting.quick else 2000).batches(500), train.head(16 if setting.quick else 256)
    wide, surveys = [], []
    for seed in range(1 if setting.quick else 3):
        model = trained(SmallVit, setting, train, epochs=5, seed=seed)
        wide.append(accuracy(model, tests))
        setting.note(f"ViT, seed {seed}: accuracy {wide[-1]:.2f} %")
        surveys.append(_survey(lambda r, m=model: accuracy(quantized(m, r, calibration), tests), setting))  # type: ignore[misc]
    return {"wide": wide, "surveys": surveys}


def _mean(found: dict[str, Any]) -> Survey:
    surveys: list[Survey] = found["surveys"]
    return {key: statistics.fmean(one[key] for one in surveys) for key in surveys[0]}


def _vision_checks(found: dict[str, Any]) -> list[Check]:
    wide = statistics.fmean(found["wide"])
    lost = {key: wide - value for key, value in _mean(found).items()}
    plain, blocks = _best(lost, W4A4, "plain"), _best(lost, W4A4, "ABFP-64")
    return [
        at_most("ViT, best W4A8: accuracy lost, points", _best(lost, W4A8), _NEAR_POINTS),
        at_least("ViT, W4A4: points that plain loses beyond ABFP-64", plain - blocks, 0.0),
        at_most("ViT, W4A4 under ABFP-64: accuracy lost, points", blocks, _NEAR_POINTS),
    ]


def _vision_table(found: dict[str, Any]) -> dict[str, Any]:
    seeds = ", ".join(f"{one:.2f}" for one in found["wide"])
    title = f"ViT on MNIST: accuracy in percent, mean of {len(found['wide'])} seeds (float32 {seeds})"
    return {"title": title, "columns": ["weights", "inputs", *METHODS], "rows": _rows(_mean(found), ".2f")}


_NOTES = (
    "Weights have one scale per output channel, inputs one per tensor, both from maxima and made anew for each input; "
    "ABFP-64 gives every 64 elements of either side a bfloat16 scale. Biases, norms, embeddings, the language model's "
    "head and the products inside attention stay wide.",
    "The language model is 64 wide, so one ABFP block is a whole row of most of its layers.",
    "Its text is 80 stories; 20 others calibrate SmoothQuant and GPTQ. The ViT has about 200,000 parameters and is "
    "trained here on 8,000 digits, judged on 2,000 others; 256 training digits calibrate.",
    "Not tried: RPTQ (channels reordered into clusters with scales of their own), static scales, and the paper's "
    "models (OPT, CodeGen, Stable Diffusion, Maskformer, ImageBind, Graphormer).",
    "Near float32 means: at most 5 % more bits per byte, at most one point of accuracy less.",
)

STUDY = Study(
    number=52,
    title="Mixed formats for 4-bit weights",
    paper="Nair et al. 2023, INT-FP-QSim: Mixed Precision and Formats For Large Language Models and Vision "
    "Transformers",
    claim="With 4-bit weights, 8-bit inputs come close to full precision in integers and floats alike; 4-bit inputs do "
    "only where short blocks have scales of their own (ABFP).",
    baseline="float32",
    treatment="W4A8 and W4A4 in INT4, E2M1, E1M2, INT8 and E4M3; plain, SmoothQuant, GPTQ, ABFP-64",
    measure="bits per byte of a small language model; accuracy of a small ViT over three seeds",
    expected="W4A8 near float32; plain W4A4 far from it, ABFP-64 the best of the methods there",
    run=run,
    needs=("data",),
)
