"""Study 37: the three recipes of production (W8A8 FP8, W8A8 INT8, W4A16 INT4): what each keeps, and where each is fast."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.roofline import H100
from narrowcast.analysis.serving import Product, narrow_product, served, wide_product
from narrowcast.metrics import Interval, bootstrap, mean_of, rouge_1, rouge_l
from narrowcast.models.generate import write
from narrowcast.ptq import AbsMax, LeastError, Solver, gptq
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.recipe import PtqRecipe, Scheme, Smooth
from narrowcast.quantize import Cast, cast
from narrowcast.studies.quantized_language import Judge, judge
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

_PROMPT, _WRITTEN = 24, 48  # tokens of a story that are given, and that are written on
_BLOCK = (
    (4096, 4096, 2),
    (1024, 4096, 2),
    (14336, 4096, 2),
    (4096, 14336, 1),
)  # a block of Llama-3.1-8B, (n, k, count)
_E4M3, _E3M4 = cast("e4m3fn/row/fp32"), cast("e3m4fn/row/fp32")
_BATCHES = (1, 16, 64, 256, 1024, 4096)


def recipes() -> dict[str, tuple[PtqRecipe, str]]:
    """Return the recipes and what each is calibrated on."""
    eight, four = recipe("w8a8-fp8"), recipe("w4a16-gptq-g32")
    return {
        "W8A8 FP8": (eight, "nothing"),
        "FP8, the weights alone": (replace(eight, scheme=Scheme(_E4M3)), "nothing"),
        "FP8, the inputs alone": (replace(eight, scheme=Scheme(cast("float32"), _E4M3)), "nothing"),
        "W8A8 FP8, SmoothQuant": (replace(eight, balance=Smooth()), "own text"),
        "W8A8 FP8, GPTQ, refined": (replace(eight, solver=Solver(refine=2)), "own text"),
        "W8A8 FP8, down_proj wide": (replace(eight, keep_wide=(*eight.keep_wide, "*down_proj")), "nothing"),
        "W8A8 E3M4": (replace(eight, scheme=Scheme(_E3M4, _E3M4)), "nothing"),
        "W8A8 INT8, rounded": (replace(recipe("w8a8-int8"), balance=None, solver=None), "nothing"),
        "W8A8 INT8, GPTQ": (replace(recipe("w8a8-int8"), balance=None), "own text"),
        "W8A8 INT8, SmoothQuant and GPTQ": (replace(recipe("w8a8-int8"), balance=Smooth()), "own text"),
        "W4A16, rounded": (recipe("w4a16-rtn-g32"), "nothing"),
        "W4A16, GPTQ": (replace(four, search=AbsMax()), "own text"),
        "W4A16, GPTQ and searched scales": (four, "own text"),
        "W4A16, the same, refined": (replace(four, search=LeastError(), solver=Solver(refine=2)), "own text"),
        "W4A16, the same, on stories": (replace(four, solver=Solver(refine=2)), "stories"),
        "W4A16, the same, on random tokens": (replace(four, solver=Solver(refine=2)), "random tokens"),
    }


def run(setting: Setting) -> Outcome:
    """Measure."""
    j = judge(setting)
    rows = 4 if setting.quick else 128
    g = torch.Generator().manual_seed(setting.seed)
    data = {
        "nothing": [],
        "own text": j.own_text(rows, setting.seed, 16 if setting.quick else 128),
        "stories": j.stories.calibration,
        "random tokens": list(torch.randint(3, 512, (rows, 16 if setting.quick else 128), generator=g).split(64)),
    }
    right, text = _right(j, j.model), _continued(j, j.model, setting)
    found: dict[str, dict[str, Any]] = {}
    for name, (chosen, calibrated) in recipes().items():
        model = j.quantized(chosen, data[calibrated])
        found[name] = _judged(j, model, right, text, setting) | {"calibrated": calibrated}
        setting.note(
            f"{name}: perplexity {found[name]['perplexity']:.4f}, recovery {found[name]['recovery'].value:.2f} %"
        )
    speed = {batch: _seconds(batch) for batch in _BATCHES}
    checks = [*_golden(), *_claims(j, found), *_speed_claims(speed)]
    return Outcome(tuple(checks), (_table(j, found), _speed_table(speed)), (_plot(found),), _NOTES)


# --- what each recipe keeps ---


@torch.no_grad()
def _right(j: Judge, model: nn.Module) -> Tensor:
    """Return, per window, how many next tokens are found, float64."""
    found = []
    for batch in j.stories.batches:
        likeliest = model(input_ids=batch[:, :-1], use_cache=False).logits.argmax(-1)
        found.append((likeliest == batch[:, 1:]).sum(1).double())
    return torch.cat(found)


def _continued(j: Judge, model: nn.Module, setting: Setting) -> list[list[int]]:
    """Return what ``model`` writes after the beginnings of the judged stories, its likeliest token each time."""
    starts = torch.cat([b[:, :_PROMPT] for b in j.stories.batches if b.shape[1] >= _PROMPT])
    length = _PROMPT + (4 if setting.quick else _WRITTEN)
    written: list[list[int]] = write(model, starts, length)[:, _PROMPT:].tolist()
    return written


def _judged(j: Judge, model: nn.Module, right: Tensor, text: list[list[int]], setting: Setting) -> dict[str, Any]:
    predicted, own = j.predict(model), _right(j, model)
    a, b = mean_of(right, j.wide.tokens), mean_of(own, j.wide.tokens)
    pairs = list(zip(text, _continued(j, model, setting), strict=True))
    assert predicted.divergence is not None
    return {
        "perplexity": predicted.perplexity,
        "divergence": float(predicted.divergence.sum() / predicted.tokens.sum()),
        "recovery": bootstrap(lambda w: 100 * b(w) / a(w), len(right)),
        "rouge_1": sum(rouge_1(x, y) for x, y in pairs) / len(pairs),
        "rouge_l": sum(rouge_l(x, y) for x, y in pairs) / len(pairs),
        "alike": sum(x == y for x, y in pairs) / len(pairs),
    }


def _claims(j: Judge, found: dict[str, dict[str, Any]]) -> list[Check]:
    def recovery(name: str) -> float:
        interval: Interval = found[name]["recovery"]
        return interval.value

    def ppl(name: str) -> float:
        value: float = found[name]["perplexity"]
        return value

    tuned = "W4A16, the same, refined"
    return [
        at_least("W8A8 FP8: next tokens found, percent of the wide model's", recovery("W8A8 FP8"), 99.5),
        at_least("W8A8 INT8, GPTQ: the same", recovery("W8A8 INT8, GPTQ"), 98.5),
        at_least(f"{tuned}: the same", recovery(tuned), 98.5),
        at_least("W4A16: perplexity that GPTQ and searched scales win", ppl("W4A16, rounded") - ppl(tuned), 0.0),
        at_least("W4A16: perplexity that the search wins within GPTQ",
                 ppl("W4A16, GPTQ") - ppl("W4A16, GPTQ and searched scales"), 0.0),
        at_least("W4A16: perplexity that 20 stories win over random tokens",
                 ppl("W4A16, the same, on random tokens") - ppl("W4A16, the same, on stories"), 0.0),
    ]  # fmt: skip


def _table(j: Judge, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for name, row in found.items():
        kept: Interval = row["recovery"]
        between = f"{kept.low:.2f} to {kept.high:.2f}"
        texts = [round(row[key], 3) for key in ("rouge_1", "rouge_l", "alike")]
        rows.append(
            [
                name,
                row["calibrated"],
                round(row["perplexity"], 4),
                round(row["divergence"], 5),
                round(kept.value, 2),
                between,
                *texts,
            ]
        )
    columns = [
        "recipe",
        "calibrated on",
        "perplexity",
        "KL, nats",
        "recovery, %",
        "95 % interval",
        "ROUGE-1",
        "ROUGE-L",
        "same text",
    ]
    title = f"What each recipe keeps: next tokens found against the wide model's (perplexity {j.wide.perplexity:.4f}), and the texts written"
    return {"title": title, "columns": columns, "rows": rows}


def _plot(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    series = [
        {
            "name": "recovery",
            "x": list(found),
            "y": [row["recovery"].value for row in found.values()],
            "mode": "markers",
        }
    ]
    return {
        "title": "Next tokens found, percent of the wide model's",
        "series": series,
        "x": "recipe",
        "y": "percent",
        "wide": True,
    }


# --- where each is fast: a roofline, forward only ---


_CASTS: dict[str, tuple[Cast | None, Cast | None]] = {
    "bf16": (None, None),
    "W8A8 FP8": (cast("e4m3fn/row/fp32"), cast("e4m3fn/row/fp32")),
    "W8A8 INT8": (cast("int8/row/fp32"), cast("int8/row/fp32")),
    "W4A16 g128": (cast("int4/1x128/float16"), None),
}


def _products(weight: Cast | None, activation: Cast | None) -> list[Product]:
    if weight is None:
        return [wide_product((n, k), count) for n, k, count in _BLOCK]
    sizes = [int(weight.bits_per_element((n, k)) * n * k * count / 8) for n, k, count in _BLOCK]
    return [
        narrow_product((n, k), size, weight, activation, count, count)
        for (n, k, count), size in zip(_BLOCK, sizes, strict=True)
    ]


def _seconds(batch: int) -> dict[str, float]:
    """Return the predicted seconds of one block for ``batch`` tokens."""
    return {name: served(_products(*pair), H100, batch=batch).decode for name, pair in _CASTS.items()}


def _speed_claims(speed: dict[int, dict[str, float]]) -> list[Check]:
    def fastest(batch: int) -> str:
        return min(speed[batch], key=speed[batch].__getitem__)

    ratio = speed[1]["bf16"] / speed[1]["W4A16 g128"]
    return [
        equal("predicted on an H100, one token at a time: fastest", fastest(1), "W4A16 g128"),
        equal("predicted on an H100, 16 tokens at a time: fastest", fastest(16), "W4A16 g128"),
        equal("predicted on an H100, 1024 tokens at a time: fastest", fastest(1024), "W8A8 FP8"),
        within("predicted, one token at a time: W4A16 faster than bf16, times", ratio, 2.5, 1.0),
    ]


def _speed_table(speed: dict[int, dict[str, float]]) -> dict[str, Any]:
    rows = [[batch, *(round(1e6 * s, 1) for s in row.values())] for batch, row in speed.items()]
    title = "A block of Llama-3.1-8B on an H100, predicted microseconds (a lower bound)"
    return {"title": title, "columns": ["tokens", *_CASTS], "rows": rows}


# --- golden checks ---


def _golden() -> list[Check]:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(64, 256, generator=g)
    eight = cast("e4m3fn/row/fp32")
    rounded = eight.apply(w)
    peak = float((rounded.abs().amax(1) / w.abs().amax(1) - 1).abs().max())
    scale = w.abs().amax(1, keepdim=True) / 448
    normal = w.abs() >= scale * 2.0**-6
    relative = float(((rounded - w).abs() / w.abs())[normal].max())
    settled = cast("int4/1x32/fp32").settle(w)
    same = int((gptq(w, torch.eye(256), settled).values != settled.apply(w)).sum())
    times = [8e9 * bits / 8 / H100["bandwidth"] * 1e3 for bits in (16, 8, 4.125)]
    return [
        at_most("FP8 per channel: maxima kept, share off", peak, 1e-6, claim=False),
        at_most("FP8 per channel: relative error of normals", relative, 2.0**-4 * (1 + 1e-6), claim=False),
        equal("GPTQ under H = I: values unlike rounding to nearest", same, 0, claim=False),
        equal("ROUGE-L of a text and itself", rouge_l(["a", "b", "c"], ["a", "b", "c"]), 1.0, claim=False),
        within("8 billion weights read at 3.35 TB/s in 16 bits, ms", times[0], 4.8, 0.05, claim=False),
        within("the same in 8 bits, ms", times[1], 2.4, 0.05, claim=False),
        within("the same in 4.125 bits, ms", times[2], 1.23, 0.01, claim=False),
    ]


_NOTES = (
    "Recovery is the share of next tokens that the quantized model finds, of those that the wide one finds, over 80 stories; the "
    "paper's benchmarks (Open LLM Leaderboard, HumanEval, Arena-Hard) need models a thousand times as large. Intervals are of a paired "
    "bootstrap over stories.",
    "Texts: 48 tokens written on after the first 24 of each story, always the likeliest; a single other token sends the rest another "
    "way, so ROUGE falls much faster than recovery.",
    "E4M3 loses by its three fraction bits and not by its scales: one bit more (E3M4) divides the KL divergence by four, as it does the power "
    "of the rounding errors; searched scales and SmoothQuant leave it where it is, and it adds up over operands, kinds of layers and blocks "
    "(`bench/results/ptq.json`), so no single layer is worth keeping wide.",
    "Groups of 32, since the model is 64 wide. `refined` is coordinate descent after GPTQ. Own text: 128 texts that the model drew "
    "itself; stories: 20 of the validation set that are not judged.",
    "Speeds are a roofline's, not measurements: no kernel here multiplies packed INT4 weights. The paper's figures (2 to 3 times "
    "cheaper synchronous queries, 5 to 7 times for 405B) are its own.",
    "That the three recipes' checkpoints load in transformers is for the tests of the export layouts.",
)

STUDY = Study(
    number=37,
    title="Three recipes of production: FP8, INT8, INT4",
    paper='Kurtic et al. 2025, "Give Me BF16 or Give Me Death"? Accuracy-Performance Trade-Offs in LLM Quantization',
    claim="W8A8 FP8 loses nothing, tuned W8A8 INT8 1 to 3 %, W4A16 INT4 hardly more; W4A16 is fastest for few tokens at a time, W8A8 for many.",
    baseline="the wide model; rounding to nearest; random calibration",
    treatment="FP8 by maxima; INT8 with GPTQ; INT4 with GPTQ, searched scales and in-domain calibration",
    measure="next tokens found against the wide model, likeness of texts, predicted times of a layer stack",
    expected="FP8 at least 99.5 %, INT8 at least 98.5 %; search and in-domain text help INT4; the crossover of speeds",
    run=run,
    needs=("data",),
)
