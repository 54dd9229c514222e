"""The main job: one model, one corpus, many recipes, side by side.

Every recipe starts from the same weights and sees the same batches as the baseline; the baseline also runs under
further seeds, and its spread is the noise floor beside which each gap is shown. Each finished run is stored at once,
so a comparison that was killed goes on where it stopped.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from narrowcast.analysis import H100, LLAMA_8B, Layer, Work, footprint, noise_floor, predict, probe
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import open_run, write_atomic
from narrowcast.nn import Linear
from narrowcast.recipes import recipe, recipes
from narrowcast.train import StepInfo, TrainConfig, TrainResult, require_torch, train

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
    start = time.perf_counter()
    open_run(out, config.to_json(), resume=resume, overwrite=overwrite)
    runs = config.runs
    results = []
    for number, run in enumerate(runs):
        path = out / "results" / f"{run.recipe}-seed{run.seed}.json"
        if not path.is_file():
            step = None if on_step is None else _bind(on_step, number, len(runs), run)
            write_atomic(path, json.dumps(_run(run, step)).encode())
        results.append(json.loads(path.read_text()))
    report = _report(config, results, command, time.perf_counter() - start)
    write_atomic(out / "report.json", json.dumps(report, indent=1).encode())
    return report


def _bind(on_step: OnStep, number: int, runs: int, run: TrainConfig) -> Callable[[StepInfo], None]:
    return lambda info: on_step(number, runs, f"{run.recipe} (seed {run.seed})", info)


def _run(config: TrainConfig, on_step: Callable[[StepInfo], None] | None) -> Json:
    """Train once and return everything that the report needs of it."""
    chosen = recipe(config.recipe)
    row: Json = {"recipe": chosen.name, "seed": config.seed, "summary": chosen.summary, "paper": chosen.paper}
    try:
        result = train(config, on_step=on_step)
    except CheckFailed as error:
        return {**row, "diverged": str(error)}
    size = footprint(result.model, result.probe_batch)
    seconds, note = predict(chosen.linear, _work(result))
    large, _ = predict(chosen.linear, LLAMA_8B)
    return {
        **row,
        "diverged": None,
        "val_loss": result.final_val_loss,
        "bits_weights": size.bits_weights,
        "bits_operands": size.bits_operands,
        "model_bytes": size.model_bytes,
        "optimizer_bytes": size.optimizer_bytes,
        "activation_bytes": size.activation_bytes,
        "step_seconds": result.seconds_per_step,
        "h100_step_seconds": seconds,
        "h100_8b_step_seconds": large,
        "h100_note": note,
        "skipped_steps": result.skipped_steps,
        "train": result.train_losses,
        "val": result.val_losses,
        "sites": [loss.to_json() for loss in probe(result.model, result.probe_batch)],
        "conversion": result.conversion.to_json(),
        "facts": _facts(config, result),
    }


def _work(result: TrainResult) -> Work:
    """Return the linear layers of the trained model, for the roofline."""
    layers, wide = [], []
    for name, module in result.model.named_modules():
        if isinstance(module, nn.Linear):
            inside = isinstance(module, Linear) or "head" not in name
            (layers if inside else wide).append(Layer(module.out_features, module.in_features))
    return Work("this model", tuple(layers), result.tokens_per_step, tuple(wide))


def _facts(config: TrainConfig, result: TrainResult) -> Json:
    """Return what all runs share: corpus, model, training."""
    corpus, hf = result.tokens.corpus, result.model.config
    return {
        "corpus": {
            "name": corpus.name,
            "files": corpus.files,
            "skipped": len(corpus.skipped),
            "train_tokens": result.tokens.train.numel(),
            "validation_tokens": result.tokens.validation.numel(),
            "bytes": corpus.bytes,
            "split": corpus.split,
        },
        "model": {
            "name": str(config.model) if config.model else f"a small {type(result.model).__name__}",
            "parameters": sum(p.numel() for p in result.model.parameters()),
            "layers": getattr(hf, "num_hidden_layers", None),
            "hidden": getattr(hf, "hidden_size", None),
            "vocab": result.tokens.vocab,
            "context": config.context,
        },
        "training": {**config.to_json(), "tokens_per_step": result.tokens_per_step},
    }


def _report(config: CompareConfig, results: list[Json], command: str, seconds: float) -> Json:
    base, others = results[: config.seeds + 1], results[config.seeds + 1 :]
    failed = next((r for r in base if r["diverged"]), None)
    if failed is not None:
        raise CheckFailed(f"the baseline itself diverged, so there is nothing to compare with: {failed['diverged']}")
    floor = noise_floor([r["val_loss"] for r in base])
    rows = [_row(r, base[0], floor.verdict) for r in (base[0], *others)]
    order = list(recipes())
    rows.sort(key=lambda r: order.index(r["recipe"]))
    facts = base[0]["facts"]
    return {
        "kind": "narrowcast-compare",
        "version": 1,
        "command": command,
        "versions": versions(),
        **facts,
        "baseline": config.baseline,
        "noise": {
            "seeds": [r["seed"] for r in base],
            "losses": list(floor.losses),
            "mean": floor.mean,
            "std": floor.std,
            "half_width": floor.half_width,
            "explanation": floor.explanation,
        },
        "rows": rows,
        "gpu": {"name": H100.name, "constants": [vars(c) for c in H100.constants], "reference": LLAMA_8B.name},
        "seconds": seconds,
    }


def _row(result: Json, base: Json, verdict: Callable[[float], str]) -> Json:
    row = {k: v for k, v in result.items() if k not in ("facts", "seed")}
    if result["diverged"]:
        return {**row, "gap": None, "verdict": "diverged"}
    gap = result["val_loss"] - base["val_loss"]
    return {**row, "gap": gap, "verdict": "baseline" if result["recipe"] == base["recipe"] else verdict(gap)}


def versions() -> Json:
    """Return what ran where: versions, processor, threads, date. No host names."""
    from transformers import __version__ as transformers_version

    from narrowcast import __version__

    return {
        "narrowcast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "platform": sys.platform,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
