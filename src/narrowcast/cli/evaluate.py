"""``narrowcast evaluate``."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from narrowcast.cli.common import DataOption, JsonFlag, SeedOption, ThreadsOption, console, emit, progress, use_threads
from narrowcast.errors import CheckFailed, InputError
from narrowcast.evaluate import Comparison, Finding, evaluate_folder
from narrowcast.evaluate.pair import compare_folders, kind_of
from narrowcast.evaluate.tasks import require_tasks, run_tasks
from narrowcast.ptq.pretrained import open_model

_SHOWN = 8  # layers that are printed; --json has all


def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder or Hugging Face model folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="[B]", help="Model folder to compare with it.")] = None,
    data: DataOption = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to run under [a run's own; fp32 for a model].")] = None,
    window: Annotated[int, typer.Option(help="Tokens per window; 0 takes the model's own context.")] = 0,
    batch: Annotated[int, typer.Option(help="Windows per batch.")] = 8,
    limit: Annotated[int, typer.Option(help="At most this many windows (pictures, pairs); 0 for all.")] = 0,
    layers: Annotated[bool, typer.Option(help="With B: also what each layer alone costs.")] = True,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, names or YAML files, separated by commas.")] = "",
    allow: Annotated[float, typer.Option(help="With B: exit 1 if it is worse by more percent.")] = math.inf,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model, or what a second one lost against it.

    Alone: perplexity and bits per byte of a run or a model folder. A run is evaluated on its own validation text unless
    --data is given; of --data every document counts. With B: perplexity, divergence and agreement of two language
    models, accuracy of two classifiers (--data an .npz), rank correlation of two sentence encoders (--data scored
    pairs), each with a paired 95 % interval and a noise floor, and the layers that hurt most.

    Example: narrowcast evaluate models/llama models/llama-w4 --data text
    """
    use_threads(threads)
    names = [name for name in tasks.split(",") if name]
    if names:
        require_tasks()
    if other is None:
        if allow != math.inf:
            raise InputError("--allow compares two models; give a second folder")
        _one(path, data, recipe, window, batch, limit, names, as_json)
        return
    if recipe is not None:
        raise InputError("--recipe runs one model; it cannot be given with a second folder")
    with progress() as bar:
        task = bar.add_task("evaluate", total=None, note="")
        found = compare_folders(
            path, other, data=data, window=window, batch=batch, limit=limit, layers=layers, seed=seed,
            note=lambda what: bar.update(task, note=what),
        )  # fmt: skip
    payload = {"a": str(path), "b": str(other), **found.to_json()}
    if names:
        payload["tasks"] = {str(folder): _tasks(folder, names, limit, batch) for folder in (path, other)}
    emit(payload, as_json, lambda: _show_pair(path, other, found, payload.get("tasks", {})))
    _judge(found.findings[0], allow)


def _judge(first: Finding, allow: float) -> None:
    if first.a is None:
        return
    lost = (first.a - first.b if first.larger_is_better else first.b - first.a) / abs(first.a) * 100
    if lost > allow and first.verdict != "within the noise":
        raise CheckFailed(f"{first.name}: {first.a:.4g} became {first.b:.4g}, {lost:.2f} % worse; allowed {allow:g} %")


def _tasks(folder: Path, names: list[str], limit: int, batch: int) -> dict[str, Any]:
    kind, auto = kind_of(folder)
    if kind != "language":
        raise InputError(f"--tasks: {folder} is no language model")
    return run_tasks(open_model(folder, auto)[0].eval(), folder, names, limit, batch)


def _one(
    path: Path, data: Path | None, recipe: str | None, window: int, batch: int, limit: int, names: list[str],
    as_json: bool,
) -> None:  # fmt: skip
    found = evaluate_folder(path, data=data, recipe_name=recipe, window=window, batch=batch, limit=limit)
    if names:
        found["tasks"] = _tasks(path, names, limit, batch)

    def show() -> None:
        console.print(f"model           {path} under {found['recipe']}", highlight=False)
        console.print(
            f"text            {found['text']}: {found['tokens']:,} tokens, {found['bytes']:,} bytes", highlight=False
        )
        console.print(f"loss            {found['loss']:.4f} nats per token", highlight=False)
        console.print(f"perplexity      {found['perplexity']:.3f}", highlight=False)
        console.print(f"bits per byte   {found['bits_per_byte']:.4f}", highlight=False)
        _show_tasks({str(path): found.get("tasks", {})})

    emit({k: None if isinstance(v, float) and math.isinf(v) else v for k, v in found.items()}, as_json, show)


def _show_pair(a: Path, b: Path, found: Comparison, tasks: dict[str, Any]) -> None:
    console.print(f"A  {a}\nB  {b}\non {found.data}, {found.units:,} units\n")
    table = Table(box=None, pad_edge=False)
    for head in ("", "A", "B", "change", "95 % interval", "noise floor", "verdict"):
        table.add_column(head, justify="left" if head in ("", "verdict") else "right")
    for one in found.findings:
        a_text = "" if one.a is None else f"{one.a:.4f}"
        change = "" if one.a is None else f"{one.change.value:+.4f}"
        interval = f"{one.change.low:.4f} to {one.change.high:.4f}"
        table.add_row(one.name, a_text, f"{one.b:.4f}", change, interval, f"{one.floor:.4f}", one.verdict)
    console.print(table)
    if found.layers:
        console.print("\nlayers that hurt most, each alone in the place of A's")
        worst = Table(box=None, pad_edge=False)
        for head in ("layer", "SQNR of its outputs, dB", "KL divergence, nats"):
            worst.add_column(head, justify="left" if head == "layer" else "right")
        for row in found.layers[:_SHOWN]:
            sqnr = row["sqnr_db"]
            worst.add_row(row["name"], "exact" if sqnr is None else f"{sqnr:.1f}", f"{row['divergence']:.2e}")
        console.print(worst)
    for note in found.notes:
        console.print(f"note: {note}", style="dim")
    _show_tasks(tasks)
    console.print(
        "\nnoise floor: half the paired interval, or what rounding A to bfloat16 does, whichever is more", style="dim"
    )


def _show_tasks(tasks: dict[str, Any]) -> None:
    for folder, rows in tasks.items():
        for task, figures in rows.items():
            text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            console.print(f"{folder}: {task}: {text}", highlight=False)
