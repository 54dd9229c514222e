"""Study 24: the same continued training in bfloat16 and in FP8 with delayed scales: spikes, gaps, domains, operations."""

import statistics
from typing import Any

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.continued import Run, base, carry_on, judged, rows_of
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

#: TransformerEngine's hybrid recipe: E4M3 forward, E5M2 gradients, the maximum of the last 1024 steps
_FORWARD, _GRADIENT = cast("e4m3fn/tensor/fp32-delayed1024"), cast("e5m2/tensor/fp32-delayed1024")
_OUT = format("bfloat16")
HYBRID = Recipe(
    "fp8-te-hybrid",
    "E4M3 forward, E5M2 gradients, delayed scales over 1024 steps",
    "Fujii et al. 2024",
    LinearSpec(Gemm(_FORWARD, _FORWARD, out=_OUT), Gemm(_GRADIENT, REUSE, out=_OUT), Gemm(REUSE, REUSE)),
)
_PEAKS = {"bfloat16": 989.0, "FP8": 1979.0}  # an H100's dense TFLOP/s


def run(setting: Setting) -> Outcome:
    """Measure."""
    start = base(setting)
    arms = {"bfloat16": recipe("bf16"), "FP8": HYBRID}
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for seed in range(setting.seed, setting.seed + (1 if setting.quick else 3)):
        for name, chosen in arms.items():
            runs[name].append(carry_on(start, chosen, setting, seed, steps=300))
            setting.note(
                f"{name}, seed {seed}: last loss {runs[name][-1].losses[-1]:.4f}, {runs[name][-1].spikes} spikes"
            )
    metrics = {
        (name, domain.name): [judged(one.model, domain) for one in found]
        for name, found in runs.items()
        for domain in start.domains
    }
    same = sum(a.order == b.order for a, b in zip(runs["bfloat16"], runs["FP8"], strict=True))
    spikes = {name: sum(one.spikes for one in found) for name, found in runs.items()}
    gap = {
        d.name: 100 * (_mean(metrics["FP8", d.name], 0) / _mean(metrics["bfloat16", d.name], 0) - 1)
        for d in start.domains
    }
    lost = {
        d.name: 100 * (_mean(metrics["bfloat16", d.name], 1) - _mean(metrics["FP8", d.name], 1)) for d in start.domains
    }
    checks = [
        *_golden(),
        equal("seeds whose two arms saw the same batches", same, len(runs["FP8"]), claim=False),
        at_least("spikes in FP8 minus those in bfloat16, three seeds", float(spikes["FP8"] - spikes["bfloat16"]), 1.0),
        at_most("prose: FP8's loss above bfloat16's, %", gap["prose"], 0.5),
        at_most("prose: tokens guessed right, bfloat16 minus FP8, points", lost["prose"], 0.5),
        at_least("code: FP8's loss above bfloat16's minus that of prose, %", gap["code"] - gap["prose"], 0.0),
        at_least("code: tokens guessed right, bfloat16 minus FP8, points", lost["code"], 0.0),
    ]
    tables = (_domain_table(metrics), _spike_table(runs), _speed_table())
    return Outcome(tuple(checks), tables, (_plot(runs),), _NOTES)


def _mean(found: list[tuple[float, float]], position: int) -> float:
    return statistics.fmean(one[position] for one in found)


# --- operations ---


def megatron(batch: int, length: int, layers: int, width: int, vocab: int) -> float:
    """Return Megatron's count of floating-point operations of a training step of a GPT (narrow feed-forward: 4 widths)."""
    return 72 * batch * length * layers * width**2 * (1 + length / (6 * width) + vocab / (12 * width * layers))


def counted(batch: int, length: int, layers: int, width: int, vocab: int) -> float:
    """Return the same by going through the products: two operations for each multiply-add, three passes."""
    tokens = batch * length
    hidden = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    products = layers * sum(tokens * a * b for a, b in hidden)
    products += layers * 2 * batch * length * length * width  # scores and values, not halved for causality
    products += tokens * width * vocab
    return 3 * 2 * products


def _golden() -> list[Check]:
    size = (4, 256, 3, 128, 1000)
    return [
        within("Megatron's count over one by products", megatron(*size) / counted(*size), 1.0, 1e-12, claim=False),
        within("570 over 415 TFLOP/s", 570 / 415, 1.373, 1e-3, claim=False),
        within(
            "415 TFLOP/s, share of an H100's bfloat16 peak, %", 100 * 415 / _PEAKS["bfloat16"], 42.0, 0.1, claim=False
        ),
    ]


# --- tables ---


def _domain_table(metrics: dict[tuple[str, str], list[tuple[float, float]]]) -> dict[str, Any]:
    rows = []
    for (name, domain), found in metrics.items():
        losses = [one[0] for one in found]
        rows.append([domain, name, statistics.fmean(losses), min(losses), max(losses), 100 * _mean(found, 1)])
    columns = ["domain", "arm", "nats per token", "lowest", "highest", "tokens guessed right, %"]
    return {"title": "After 300 further steps on prose and code", "columns": columns, "rows": sorted(rows)}


def _spike_table(runs: dict[str, list[Run]]) -> dict[str, Any]:
    last = rows_of({name: [statistics.fmean(one.losses[-20:]) for one in found] for name, found in runs.items()})
    rows = [[*row, sum(one.spikes for one in runs[row[0]])] for row in last]
    columns = ["arm", "training loss, last 20 steps", "lowest", "highest", "spikes over all seeds"]
    return {"title": "Stability: a spike is 5 deviations above the 30 steps before", "columns": columns, "rows": rows}


def _speed_table() -> dict[str, Any]:
    rows = [["bfloat16", 415, 100 * 415 / _PEAKS["bfloat16"]], ["FP8", 570, 100 * 570 / _PEAKS["FP8"]]]
    return {"title": "The paper's throughput, of the cards' peaks", "columns": ["arm", "TFLOP/s", "share of peak, %"], "rows": rows}  # fmt: skip


def _plot(runs: dict[str, list[Run]]) -> dict[str, Any]:
    series = [
        {"name": name, "x": list(range(1, len(found[-1].losses) + 1)), "y": list(found[-1].losses)}
        for name, found in runs.items()
    ]
    return {"title": "Training loss after the switch, last seed", "x": "step", "y": "nats per token", "series": series}


_NOTES = (
    "Both arms start from the same model, trained in bfloat16 on other text, with a cold optimizer, and see the same batches.",
    "The history starts empty: until a step is finished the current maximum is used, where TransformerEngine starts at scale 1.",
    "Domains stand in for the paper's benchmarks: prose for language, Python source for code.",
    "Throughput is quoted, not measured: the emulation says nothing about speed. Llama-3 70B is out of reach.",
)

STUDY = Study(
    number=24,
    title="FP8 beside bfloat16, the same training twice",
    paper="Fujii et al. 2024, Balancing Speed and Stability: The Trade-offs of FP8 vs. BF16 Training in LLMs",
    claim="Continued training in FP8 with delayed scales is less stable (more loss spikes), near parity on language, and loses "
    "something on code.",
    baseline="bfloat16 from the same checkpoint, same batches",
    treatment="E4M3 forward, E5M2 gradients, delayed tensor scales over 1024 steps",
    measure="loss spikes by a fixed rule, loss and tokens guessed right on prose and on code, three seeds",
    expected="more spikes in FP8; prose within 0.5 %; a larger loss on code",
    run=run,
    needs=("data",),
)
