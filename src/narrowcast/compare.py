"""The main job: one model, one corpus, many recipes, side by side.

Every recipe starts from the same weights and sees the same batches as the baseline; the baseline also runs under
further seeds, and its spread is the noise floor beside which each gap is shown. Each finished run is stored at once,
so a comparison that was killed goes on where it stopped.
"""

import copy
import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from narrowcast.analysis import (
    H100,
    LLAMA_8B,
    Layer,
    NoiseFloor,
    Work,
    footprint,
    noise_floor,
    optimizer_traffic,
    predict,
    probe,
)
from narrowcast.errors import CheckFailed, InputError, require_torch
from narrowcast.io import check_run, open_run, versions, write_atomic
from narrowcast.nn import Conversion
from narrowcast.recipes import Recipe, recipe, recipes
from narrowcast.train import StepInfo, TrainConfig, TrainResult, build, train
from narrowcast.workloads import TokenizedCorpus

Json = dict[str, Any]
#: called after every update with (run number, runs in all, name of the run, step)
OnStep = Callable[[int, int, str, StepInfo], None]


@dataclass(frozen=True)
class CompareConfig:
    """What to compare.

    Attributes:
        training: settings shared by all runs (its ``recipe`` is replaced).
        recipes: names, without the baseline if you like: it always runs.
        baseline: the recipe that gaps are measured from.
        seeds: further seeds of the baseline, at least 2.
    """

    training: TrainConfig
    recipes: tuple[str, ...] = ()
    baseline: str = "bf16"
    seeds: int = 4

    def __post_init__(self) -> None:
        for name in (*self.recipes, self.baseline):
            recipe(name)
        twice = sorted({name for name in self.recipes if self.recipes.count(name) > 1})
        if twice:
            raise InputError(f"--recipes: {', '.join(twice)} given twice; name each recipe once")
        if self.seeds < 2:
            raise InputError(f"--seeds: the noise floor needs at least 2 further baseline seeds, found {self.seeds}")

    @property
    def runs(self) -> list[TrainConfig]:
        """All runs: the baseline, its further seeds, then every other recipe."""
        names = self.recipes or tuple(recipes())
        first = self.training.seed
        base = [replace(self.training, recipe=self.baseline, seed=first + i) for i in range(self.seeds + 1)]
        return base + [replace(self.training, recipe=n) for n in names if n != self.baseline]

    def to_json(self) -> Json:
        """Return the settings as plain values."""
        settings = self.training.to_json()
        del settings["recipe"]
        return {**settings, "recipes": list(self.recipes), "baseline": self.baseline, "seeds": self.seeds}


def compare(
    config: CompareConfig,
    out: Path,
    *,
    command: str = "",
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> Json:
    """Run the comparison and return the report; ``out/report.json`` holds the same.

    Raises InputError for bad input before anything runs. A recipe that diverges is a row that says so.
    """
    require_torch(torch.__version__)
    check_run(out, resume=resume, overwrite=overwrite)
    start = Start(*build(config.training))  # bad data or a bad model shows here, before anything is written
    place = config.training.place
    where = {**place.to_json(), "attention": place.attention(start.model).kind}
    settings = {**config.to_json(), **where, "corpus": start.tokens.corpus.digest[:16]}
    open_run(out, settings, resume=resume, overwrite=overwrite)
    runs = config.runs
    results = []
    for number, run in enumerate(runs):
        path = out / "results" / f"{run.recipe}-seed{run.seed}.json"
        if not path.is_file():
            step = None if on_step is None else _bind(on_step, number, len(runs), run)
            write_atomic(path, _dump(_run(run, start.tokens, step)))
        results.append(_read(path))
    report = _report(config, start, results, command)
    write_atomic(out / "report.json", _dump(report))
    return report


def _dump(value: Json) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _read(path: Path) -> Json:
    try:
        record: Json = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: no result of a run ({error}); delete it, then --resume makes it anew") from None
    return record


def _bind(on_step: OnStep, number: int, runs: int, run: TrainConfig) -> Callable[[StepInfo], None]:
    return lambda info: on_step(number, runs, f"{run.recipe} (seed {run.seed})", info)


# --- one run ---


def _run(config: TrainConfig, tokens: TokenizedCorpus, on_step: Callable[[StepInfo], None] | None) -> Json:
    """Train once and return what was measured; a run that diverges keeps its losses up to there."""
    curve: list[tuple[int, float]] = []

    def note(info: StepInfo) -> None:
        curve.append((info.step, info.loss))
        if on_step is not None:
            on_step(info)

    begin = time.perf_counter()
    try:
        measured = _measured(train(config, tokens=tokens, on_step=note))
    except CheckFailed as error:
        measured = _diverged(str(error), curve)
    return {"recipe": config.recipe, "seed": config.seed, "seconds": time.perf_counter() - begin, **measured}


def _measured(result: TrainResult) -> Json:
    name = result.conversion.recipe
    if not math.isfinite(result.final_val_loss):
        return _diverged(f"recipe {name} diverged: its final validation loss is not finite", result.train_losses)
    losses = probe(result.model, result.probe_batch, _loss_scale(recipe(name), result.skipped_steps))
    return {
        "diverged": None,
        "val_loss": result.final_val_loss,
        "step_seconds": result.seconds_per_step,
        "skipped_steps": result.skipped_steps,
        "train": result.train_losses,
        "val": result.val_losses,
        "sites": [loss.to_json() for loss in losses],
    }


def _diverged(why: str, curve: list[tuple[int, float]]) -> Json:
    nothing: Json = {"val_loss": None, "step_seconds": None, "skipped_steps": 0, "val": [], "sites": []}
    return {"diverged": why, "train": [point for point in curve if math.isfinite(point[1])], **nothing}


def _loss_scale(made_by: Recipe, skipped: int) -> float:
    """Return the loss scale at the end of a short run: each skipped update lowered it once."""
    scale = made_by.loss_scale
    return scale.initial * scale.backoff**skipped if scale else 1.0


# --- what needs no training ---


@dataclass(frozen=True)
class Start:
    """What all runs start from: the wide model at its initial weights, and the corpus."""

    model: nn.Module
    tokens: TokenizedCorpus


def _by_construction(chosen: Recipe, start: Start, config: TrainConfig) -> Json:
    """Return the conversion table, the sizes and the predicted times: they depend on no training."""
    device = config.place.device
    model = copy.deepcopy(start.model).to(device)
    conversion = chosen.convert(model, backend=config.backend, seed=config.seed)
    tokens = start.tokens.validation_batches(1, config.batch, config.context)[0].to(device)
    wide = torch.finfo(config.place.wide).bits
    size = footprint(model, tokens, chosen.optimizer, wide)
    traffic = optimizer_traffic(model, chosen.optimizer)
    spec = recipe("bf16").linear if chosen.linear is None and wide == 16 else chosen.linear  # what autocast multiplies
    small = predict(spec, _work(conversion, _tokens_per_step(config)), other_bytes=traffic)
    large = predict(spec, LLAMA_8B)
    gc.collect()  # a forward pass leaves cycles behind, which hold its activations
    return {
        **asdict(size),
        "h100_step_seconds": small.seconds,
        "h100_8b_step_seconds": large.seconds,
        "h100_note": large.note,
        "conversion": conversion.to_json(),
    }


def _work(conversion: Conversion, tokens: int) -> Work:
    """Return the linear layers of the model, for the roofline; with no recipe all of them are wide, and float32."""
    linears = [row for row in conversion.rows if row.kind == "Linear"]
    narrow = tuple(Layer(row.shape[0], row.shape[1]) for row in linears if row.became == "narrow")
    wide = tuple(Layer(row.shape[0], row.shape[1]) for row in linears if row.became == "wide")
    return Work("this model", narrow, tokens, wide)


def _tokens_per_step(config: TrainConfig) -> int:
    return config.batch * config.context * config.accumulate


# --- the report ---


def _report(config: CompareConfig, start: Start, results: list[Json], command: str) -> Json:
    """Return everything that the report shows, as plain values."""
    base, others = results[: config.seeds + 1], results[config.seeds + 1 :]
    failed = next((r for r in base if r["diverged"]), None)
    if failed is not None:
        raise CheckFailed(
            f"the baseline itself diverged under seed {failed['seed']}, so there is nothing to compare with: "
            f"{failed['diverged']}; lower --lr"
        )
    floor = noise_floor([r["val_loss"] for r in base])
    order = list(recipes())
    rows = sorted((base[0], *others), key=lambda r: order.index(r["recipe"].partition("+")[0].partition("@")[0]))
    return {
        "kind": "narrowcast-compare",
        "version": 1,
        "command": command,
        "versions": versions(),
        "corpus": _corpus(start.tokens),
        "model": _model(start, config.training),
        "training": _training(config.training),
        "attention": config.training.place.attention(start.model).to_json(),
        "baseline": config.baseline,
        "noise": {
            "seeds": [r["seed"] for r in base],
            "losses": list(floor.losses),
            "mean": floor.mean,
            "std": floor.std,
            "half_width": floor.half_width,
            "explanation": floor.explanation,
        },
        "rows": [_row(r, base[0], floor, start, config.training) for r in rows],
        "gpu": {"name": H100.name, "constants": [asdict(c) for c in H100.constants], "reference": LLAMA_8B.name},
        "seconds": sum(r["seconds"] for r in results),
    }


def _row(result: Json, base: Json, floor: NoiseFloor, start: Start, config: TrainConfig) -> Json:
    """Return one row: what was measured, how it is judged, and what follows from the recipe alone."""
    chosen = recipe(result["recipe"])
    if result["diverged"]:
        gap, verdict = None, "diverged"
    else:
        gap = result["val_loss"] - floor.mean
        verdict = "baseline" if result["recipe"] == base["recipe"] else floor.verdict(gap)
    measured = {key: value for key, value in result.items() if key not in ("seed", "seconds")}
    judged = {"summary": chosen.summary, "paper": chosen.paper, "gap": gap, "verdict": verdict}
    return {**measured, **judged, **_by_construction(chosen, start, config)}


def _corpus(tokens: TokenizedCorpus) -> Json:
    corpus = tokens.corpus
    return {
        "name": corpus.name,
        "files": corpus.files,
        "train_files": len(corpus.train),
        "validation_files": len(corpus.validation),
        "skipped": len(corpus.skipped),
        "train_tokens": tokens.train.numel(),
        "validation_tokens": tokens.validation.numel(),
        "bytes": corpus.bytes,
        "bpe_bytes": tokens.seen,
        "split": "; ".join(filter(None, (corpus.split, tokens.sampled))),
    }


def _model(start: Start, config: TrainConfig) -> Json:
    hf: Any = start.model.config
    return {
        "name": str(config.model) if config.model else f"a small {type(start.model).__name__}",
        "parameters": sum(p.numel() for p in start.model.parameters()),
        "layers": getattr(hf, "num_hidden_layers", None),
        "hidden": getattr(hf, "hidden_size", None),
        "vocab": start.tokens.vocab,
        "context": config.context,
    }


def _training(config: TrainConfig) -> Json:
    settings = config.to_json()
    del settings["recipe"]
    return {**settings, **config.place.to_json(), "tokens_per_step": _tokens_per_step(config)}
