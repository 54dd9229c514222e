"""Study 32: one power-of-two bias per tensor, from its own maximum (AMAX) or the same for all (CSCALE)."""

import copy
import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.formats import Format, Minifloat, Specials
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.small_training import prepared
from narrowcast.studies.stories import load_stories
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.vision import digits, score
from narrowcast.workloads import Images, fit

_BIASES = range(-8, 17)
_ACCEPTED = 0.995  # share of the reference that still counts as reached


def biased(exponent: int, mantissa: int, bias: int, specials: Specials) -> Format:
    """Return the format whose values are those of the usual one over 2**bias: multiplying by 2**bias before a cast."""
    usual = (1 << (exponent - 1)) - 1
    return Minifloat(f"e{exponent}m{mantissa}, bias {bias}", exponent, mantissa, usual + bias, specials)


def _forward(bias: int) -> Cast:
    return Cast(biased(4, 3, bias, Specials.FN))


def _gradient(bias: int) -> Cast:
    return Cast(biased(5, 2, bias, Specials.IEEE))


AMAX, AMAX_GRADIENT = cast("e4m3fn/tensor/e8m0-ceil"), cast("e5m2/tensor/e8m0-ceil")


def _recipe(name: str, forward: Cast, gradient: Cast) -> Recipe:
    spec = LinearSpec(Gemm(forward, forward), Gemm(gradient, REUSE), Gemm(REUSE, REUSE))
    return Recipe(name, "powers of two, one per tensor", "Perez et al. 2023", spec)


def constant(bias: int) -> Recipe:
    """Return CSCALE with one bias for weights, activations and gradients."""
    return _recipe(f"CSCALE {bias}", _forward(bias), _gradient(bias))


ADAPTIVE = _recipe("AMAX", AMAX, AMAX_GRADIENT)


def run(setting: Setting) -> Outcome:
    """Measure."""
    stories = load_stories(setting)
    reference = stories.bits_per_byte(stories.model)
    biases = list(_BIASES)[:: 8 if setting.quick else 1]
    curve = {b: stories.bits_per_byte(stories.converted(constant(b))) for b in biases}
    setting.note("perplexity: done")
    adaptive = stories.bits_per_byte(stories.converted(ADAPTIVE))
    flat = [b for b, bits in curve.items() if adaptive / bits >= _ACCEPTED]
    best = min(curve.values())
    tuned = _fine_tuning(setting)
    inner = max(sum(b in tuned["biases"] for b in flat), 1)
    trained = [b for b in tuned["biases"] if tuned["constant"][b] >= _ACCEPTED * tuned["float32"]]
    spread = _spread(setting)
    checks = [
        *_golden(),
        at_most("AMAX: bits per byte above float32, %", 100 * (adaptive / reference - 1), 0.5),
        at_least("CSCALE: biases that reach 99.5 % of AMAX, of -8 to 16", float(len(flat)), 3.0),
        at_most("CSCALE: bits per byte of the best bias above float32, %", 100 * (best / reference - 1), 0.5),
        equal(
            "those biases are neighbours",
            str(flat == [b for b in biases if flat and min(flat) <= b <= max(flat)]),
            "True",
        ),
        at_least("CSCALE outside: worst bits per byte over float32's", max(curve.values()) / reference, 1.05),
        at_least("AMAX fine-tuning: accuracy, share of float32's", tuned["amax"] / tuned["float32"], _ACCEPTED),
        at_most("even biases that fine-tuning accepts, over those of inference", len(trained) / inner, 1.0),
        at_least("median bias of gradients minus that of activations", spread["g"][1] - spread["x"][1], 1.0),
        at_least(
            "spread of the gradients' biases (5 to 95 %) over the activations'",
            (spread["g"][2] - spread["g"][0]) / max(spread["x"][2] - spread["x"][0], 1.0),
            1.0,
        ),
    ]
    tables = (_curve_table(curve, reference, adaptive, tuned), _spread_table(spread))
    return Outcome(tuple(checks), tables, (_plot(curve, reference, adaptive),), _NOTES)


# --- golden checks ---


def bias_of(amax: float, fmt: str = "e4m3fn") -> int:
    """Return the bias that AMAX gives a tensor with this maximum: floor(log2(max / amax))."""
    code = cast(f"{fmt}/tensor/e8m0-ceil").quantize(torch.tensor([amax])).scales.item()
    return 127 - int(code)


def _golden() -> list[Check]:
    found = [bias_of(x) for x in (1.0, 3.5, 448.0, 449.0, 1e-3, 0.0)]
    x = torch.linspace(0.1, 2.0, 999)
    errors = {_error(x, b) for b in range(7)}
    low = _forward(3).apply(torch.tensor([2.0**-13, 1.001 * 2.0**-13]))
    return [
        equal("biases of maxima 1, 3.5, 448, 449, 0.001 and 0", str(found), "[8, 7, 0, -1, 18, 0]", claim=False),
        equal("the same of 1 below 240", bias_of(1.0, "e4m3"), 7, claim=False),
        equal("relative errors under biases that keep values normal: how many differ", len(errors) - 1, 0, claim=False),
        equal("half the smallest value goes to zero, more does not", str((low > 0).tolist()), "[False, True]", claim=False),
    ]  # fmt: skip


def _error(x: Tensor, bias: int) -> float:
    return float(((_forward(bias).apply(x) - x) / x).abs().max())


# --- fine-tuning ---


class _Mlp(nn.Module):
    """Three linear layers over the pixels of a digit; the last one is replaced for a new task."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))  # type: ignore[no-any-return]


def _fine_tuning(setting: Setting) -> dict[str, Any]:
    """Fine-tune a network that reads digits to tell whether a digit is prime; return accuracies in percent."""
    train, test = digits(setting)
    torch.manual_seed(setting.seed)
    base = _Mlp()
    fit(base, train, epochs=1 if setting.quick else 3, seed=setting.seed)
    prime = torch.tensor([d in (2, 3, 5, 7) for d in range(10)]).long()
    new_train, new_test = (Images(images.pixels, prime[images.labels]) for images in (train.head(8000), test))
    biases = [0, 8] if setting.quick else list(range(-4, 17, 2))

    def tuned(chosen: Recipe) -> float:
        scores = []
        for seed in range(1 if setting.quick else 2):
            model = copy.deepcopy(base)
            torch.manual_seed(seed)
            model.head = nn.Linear(256, 2)
            chosen.convert(model, backend="emulate", seed=seed)
            fit(model, new_train, epochs=1, rate=5e-4, seed=seed)
            scores.append(score(model, new_test))
        setting.note(f"fine-tuning, {chosen.name}: {statistics.fmean(scores):.2f} %")
        return statistics.fmean(scores)

    found = {"float32": tuned(recipe("fp32")), "amax": tuned(ADAPTIVE), "biases": biases}
    return found | {"constant": {b: tuned(constant(b)) for b in biases}}


# --- which biases training asks for ---


def _spread(setting: Setting) -> dict[str, tuple[float, float, float]]:
    """Return (5 %, median, 95 %) of the biases that AMAX gives weights, activations and gradients while training."""
    trainer = prepared(recipe("fp32"), setting, setting.seed, steps=60)
    biases: dict[str, list[float]] = {"w": [], "x": [], "g": []}

    def note(tensor: str, x: Tensor, top: float) -> None:
        amax = float(x.detach().abs().max())
        if amax > 0:
            biases[tensor].append(math.floor(math.log2(top / amax)))

    def forward(layer: nn.Linear, args: tuple[Tensor, ...], y: Tensor) -> None:
        if layer.out_features != 512 and y.requires_grad:  # the head stays wide
            note("w", layer.weight, 448.0)
            note("x", args[0], 448.0)
            y.register_hook(lambda g: note("g", g, 57344.0))

    for module in trainer.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(forward)
    trainer.run(None)
    found = {}
    for name, values in biases.items():
        low, middle, high = (float(torch.tensor(values).float().quantile(q)) for q in (0.05, 0.5, 0.95))
        found[name] = (low, middle, high)
    return found


# --- tables ---


def _curve_table(curve: dict[int, float], reference: float, adaptive: float, tuned: dict[str, Any]) -> dict[str, Any]:
    rows: list[list[Any]] = [["float32", reference, tuned["float32"]], ["AMAX", adaptive, tuned["amax"]]]
    rows += [[f"CSCALE {b}", bits, tuned["constant"].get(b, "")] for b, bits in curve.items()]
    columns = ["scaling", "bits per byte", "accuracy after fine-tuning, %"]
    return {
        "title": "A language model cast after training, and a classifier fine-tuned",
        "columns": columns,
        "rows": rows,
    }


def _spread_table(found: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    names = {"w": "weights", "x": "activations", "g": "gradients"}
    rows = [[names[name], *values] for name, values in found.items()]
    columns = ["tensors", "5 %", "median", "95 %"]
    return {"title": "Biases that AMAX gives over 60 steps of training", "columns": columns, "rows": rows}


def _plot(curve: dict[int, float], reference: float, adaptive: float) -> dict[str, Any]:
    x = list(curve)
    series = [
        {"name": "CSCALE", "x": x, "y": [min(bits, 2 * reference) for bits in curve.values()]},
        {"name": "AMAX", "x": [x[0], x[-1]], "y": [adaptive, adaptive]},
        {"name": "float32", "x": [x[0], x[-1]], "y": [reference, reference]},
    ]
    title = "Bits per byte under one constant bias, cut at twice float32's"
    return {"title": title, "x": "bias: tensors times 2**bias before the cast", "y": "bits per byte", "series": series}


_NOTES = (
    "A constant bias is a format of its own, e4m3fn or e5m2 with another exponent bias: the same values, no scale.",
    "The language model has 260,032 parameters; the paper's have 111 million to 70 billion, and its training is fine-tuning too.",
    "The classifier reads digits and is tuned to tell primes, one pass over 8,000 digits, two seeds; all three of its layers "
    "are cast.",
    "Whether the interval narrows with size, and what a current maximum costs beside a static scale, are a GPU's matter.",
)

STUDY = Study(
    number=32,
    title="FP8 with one bias per tensor, or one for all",
    paper="Perez et al. 2023, Training and inference of large language models using 8-bit floating point",
    claim="A power of two per tensor, from its current maximum, keeps 99.5 % of the 16-bit score in inference and fine-tuning; "
    "one constant for all tensors does within an interval.",
    baseline="float32",
    treatment="FP8-AMAX: floor(log2(max / amax)) per tensor; FP8-CSCALE: a constant from -8 to 16",
    measure="bits per byte of a trained language model; accuracy of a fine-tuned classifier; the biases of each kind of tensor",
    expected="AMAX and the best constant within 0.5 %; a flat interval of constants; gradients ask for larger biases",
    run=run,
    needs=("data",),
)
