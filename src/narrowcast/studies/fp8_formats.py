"""Study 28: the two FP8 encodings, bit for bit; training with both; language models after training."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from narrowcast.analysis.sites import probe
from narrowcast.formats import Minifloat, format
from narrowcast.models.outliers import inject_outliers
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import WIDE, Gemm
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.small_training import Spread, over_seeds
from narrowcast.studies.stories import PUBLISHED, load_stories
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

NAMES = ("e4m3fn", "e5m2")
#: encodings of the specification that are easy to get wrong: value -> code, nearest even, overflow to NaN or infinity
SPOTS = {
    "e4m3fn": {0.3: 0x2A, 1.0625: 0x38, 1.1875: 0x3A, 17.0: 0x58, 18.0: 0x59, 19.0: 0x5A, 447.0: 0x7E, 464.0: 0x7E,
               464.01: 0x7F, 2.0**-10: 0x00, 1.5 * 2.0**-10: 0x01, 0.015: 0x08, -0.0: 0x80},
    "e5m2": {0.3: 0x35, 1.125: 0x3C, 1.375: 0x3E, 61439.0: 0x7B, 61440.0: 0x7C, 2.0**-17: 0x00, 1.5 * 2.0**-17: 0x01},
}  # fmt: skip


def run(setting: Setting) -> Outcome:
    """Measure."""
    training, flushed = _train(setting)
    casts = _cast_directly(setting)
    checks = [*_encodings(setting), *_training_checks(training, flushed), *_cast_checks(setting, casts)]
    tables = (_training_table(training, flushed), _cast_table(casts))
    return Outcome(tuple(checks), tables, notes=_NOTES)


# --- the encodings, against tables made from the specification's words ---


def table(fmt: Minifloat) -> list[float]:
    """Return the value of each positive code from 0, as the specification words it, up to the largest finite one."""
    values = []
    for code in range(fmt.max_code + 1):
        e, m = code >> fmt.mantissa, code & ((1 << fmt.mantissa) - 1)
        share = m / 2**fmt.mantissa
        values.append(2.0 ** (e - fmt.bias) * (1 + share) if e else 2.0 ** (1 - fmt.bias) * share)
    return values


def reference(fmt: Minifloat, x: Tensor) -> Tensor:
    """Return the codes of ``x`` by looking them up between the table's midpoints; ties to the even code."""
    values = torch.tensor(table(fmt), dtype=torch.float64)
    step = values[-1] - values[-2]
    ends = torch.cat([values, values[-1:] + step])  # the value that would come next decides what overflows
    middles = (ends[:-1] + ends[1:]) / 2
    magnitude = x.double().abs()
    code = torch.searchsorted(middles, magnitude)  # the number of midpoints below
    tied = (code < len(middles)) & (middles[code.clamp_max(len(middles) - 1)] == magnitude)
    code = code + (tied & (code % 2 == 1)).long()
    beyond = len(values) if fmt.saturate is False else len(values) - 1
    code = torch.where(code > len(values) - 1, beyond, code)
    code = torch.where(x.isnan(), (1 << (fmt.bits - 1)) - 1, code)
    return code | (x.signbit().long() << (fmt.bits - 1))


def _encodings(setting: Setting) -> list[Check]:
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    generator = torch.Generator().manual_seed(setting.seed)
    count = 1 << (14 if setting.quick else 20)
    bits = torch.randint(-(1 << 31), 1 << 31, (count,), generator=generator, dtype=torch.int64)
    x = torch.cat([halves, bits.to(torch.int32).view(torch.float32)])
    checks = []
    for name in NAMES:
        closed = format(name)
        assert isinstance(closed, Minifloat)
        for fmt, how in ((closed, "saturating"), (replace(closed, saturate=False), "open-ended")):
            number = ~x.isnan()
            wrong = int((fmt.encode(x)[number].long() != reference(fmt, x)[number]).sum())
            title = f"{name}, {how}: wrong codes of {len(x):,} inputs, all of float16 among them"
            checks.append(equal(title, wrong, 0, claim=False))
        spots = SPOTS[name]
        found = replace(closed, saturate=False).encode(torch.tensor(list(spots), dtype=torch.float64)).tolist()
        wrong = sum(a != b for a, b in zip(found, spots.values(), strict=True))
        checks.append(equal(f"{name}: wrong codes of {len(spots)} published ones", wrong, 0, claim=False))
    top = torch.arange(256).to(torch.uint8)
    as_half = (torch.arange(256, dtype=torch.int32) << 8).to(torch.int16).view(torch.float16).float()
    wrong = int((~torch.isclose(format("e5m2").decode(top), as_half, rtol=0, atol=0, equal_nan=True)).sum())
    return [*checks, equal("e5m2: codes that are not float16's upper byte", wrong, 0, claim=False)]


# --- training ---

_SCALED, _WIDE_RANGE = cast("e4m3fn/tensor/fp32"), cast("e5m2/tensor/fp32")


def _recipe(name: str, forward: Cast, gradient: Cast) -> Recipe:
    out = format("bfloat16")
    spec = LinearSpec(Gemm(forward, forward, out=out), Gemm(gradient, forward, out=out), Gemm(gradient, forward))
    return Recipe(name, "one scale per tensor, or none", "Micikevicius et al. 2022", spec)


RECIPES = (
    recipe("fp32"),
    recipe("fp8-delayed"),
    _recipe("E5M2 for all operands", _WIDE_RANGE, _WIDE_RANGE),
    _recipe("E4M3, gradients without a scale", _SCALED, cast("e4m3fn")),
)


def _train(setting: Setting) -> tuple[dict[str, Spread], dict[str, float]]:
    """Return, per recipe, the losses over the seeds and the share of gradients that its cast flushes to zero."""
    losses = {chosen.name: over_seeds(chosen, setting) for chosen in RECIPES}
    return losses, {name: _flushed(found) for name, found in losses.items()}


def _flushed(found: Spread) -> float:
    if not found.last.conversion.narrow:
        return 0.0
    shares = [loss.underflow for loss in probe(found.last.model, found.last.probe_batch) if loss.operand == "dgrad.g"]
    return sum(shares) / len(shares)


def _training_checks(losses: dict[str, Spread], flushed: dict[str, float]) -> list[Check]:
    base = losses["fp32"]
    bound = max(2 * base.deviation, 1e-3)
    unscaled = "E4M3, gradients without a scale"
    return [
        at_most("training in both FP8 formats over float32, nats per token (bound: two standard deviations)",
                losses["fp8-delayed"].mean - base.mean, bound),
        at_least("E4M3 gradients without a scale: share flushed to zero", flushed[unscaled], 0.5),
        at_least("E4M3 gradients without a scale over float32, nats per token (same bound)",
                 losses[unscaled].mean - base.mean, bound),
        at_least("E5M2 for all operands over both formats, nats per token (same bound)",
                 losses["E5M2 for all operands"].mean - losses["fp8-delayed"].mean, bound),
    ]  # fmt: skip


def _training_table(losses: dict[str, Spread], flushed: dict[str, float]) -> dict[str, Any]:
    columns = ["recipe", "mean", "standard deviation", "by seed", "gradients flushed to zero"]
    rows = [
        [s.name, f"{s.mean:.4f}", f"{s.deviation:.4f}", s.listed, f"{flushed[s.name]:.2%}"] for s in losses.values()
    ]
    return {"title": "Training a small Llama: final validation loss, nats per token", "columns": columns, "rows": rows}


# --- after training ---


@dataclass(frozen=True)
class DirectCast:
    """Bits per byte of the language model under one format, as it is and with outlier channels."""

    name: str
    plain: float
    outliers: float


def _cast_directly(setting: Setting) -> list[DirectCast]:
    """Cast weights per channel and inputs per tensor, both by their maxima."""
    stories = load_stories(setting)
    loud = copy.deepcopy(stories.model)
    inject_outliers(loud)
    both = (stories, replace(stories, model=loud))
    found = [DirectCast("float32", *(s.bits_per_byte(s.model) for s in both))]
    for name in ("e4m3fn", "e5m2", "int8"):
        chosen = _inference(name)
        plain, outliers = (s.bits_per_byte(s.converted(chosen)) for s in both)
        setting.note(f"{name}: {plain:.4f} bits per byte, with outliers {outliers:.4f}")
        found.append(DirectCast(name, plain, outliers))
    return found


def _inference(name: str) -> Recipe:
    forward = Gemm(cast(f"{name}/tensor/fp32"), cast(f"{name}/row/fp32"))
    wide = Gemm(WIDE, WIDE)
    return Recipe(name, "weights per channel, inputs per tensor", "sheet 28", LinearSpec(forward, wide, wide))


def _cast_checks(setting: Setting, found: list[DirectCast]) -> list[Check]:
    wide, fp8, _, int8 = found
    loss = {c.name: (c.plain / wide.plain - 1, c.outliers / wide.outliers - 1) for c in found}
    golden = [within("float32 model, bits per byte", wide.plain, PUBLISHED, 1e-3, claim=False)]
    return [
        *([] if setting.quick else golden),
        within("float32 model with outlier channels, bits per byte", wide.outliers, wide.plain, 1e-4, claim=False),
        at_most("E4M3 after training: bits per byte lost, share", loss["e4m3fn"][0], 0.01),
        at_most("E4M3 after training, outlier channels: bits per byte lost, share", loss["e4m3fn"][1], 0.01),
        at_least("INT8 over E4M3 with outlier channels, bits per byte", int8.outliers - fp8.outliers, 0.0),
    ]


def _cast_table(found: list[DirectCast]) -> dict[str, Any]:
    rows = [[c.name, f"{c.plain:.4f}", f"{c.outliers:.4f}"] for c in found]
    columns = ["weights per channel, inputs per tensor", "as it is", "with outlier channels"]
    return {"title": "A language model cast after training: bits per byte", "columns": columns, "rows": rows}


_NOTES = (
    "Codes are compared with a table built from the specification's words and searched by midpoints; the tests compare "
    "them with ml_dtypes and gfloat as well, over every 16-bit input.",
    "Training: a Llama of half a million parameters, 150 updates of 512 tokens of tiny Shakespeare, three seeds. The "
    "paper trains models of up to 175 billion parameters.",
    "The language model has 260,032 parameters and no outliers of its own. Its twin has two input channels per layer "
    "multiplied by 64 and the weights that read them divided by it: the same function, as large models come.",
    "Speed on a GPU, and products on one, are a matter of the native backend and not measured here.",
)

STUDY = Study(
    number=28,
    title="Two FP8 formats",
    paper="Micikevicius et al. 2022, FP8 Formats for Deep Learning",
    claim="E4M3 for weights and activations and E5M2 for gradients, with one scale per tensor, train as 16 bits do, "
    "and models trained in 16 bits that resist INT8 can be cast to FP8.",
    baseline="training in float32; INT8 after training",
    treatment="E4M3 forward and E5M2 gradients under delayed scales; E4M3 after training",
    measure="validation loss over three seeds; bits per byte of a language model, with and without outlier channels",
    expected="FP8 training within the seeds' noise of float32; gradients need a scale; FP8 loses under one per cent",
    run=run,
    needs=("data",),
)
