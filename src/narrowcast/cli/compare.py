"""``narrowcast compare``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from narrowcast.cli.common import (
    AttentionOption,
    CompileFlag,
    DataOption,
    DeviceOption,
    JsonFlag,
    ModelOption,
    OutOption,
    OverwriteFlag,
    ResumeFlag,
    SeedOption,
    ThreadsOption,
    WideOption,
    console,
    emit,
    progress,
    use_threads,
)
from narrowcast.compare import CompareConfig
from narrowcast.compare import compare as run_comparison
from narrowcast.train import StepInfo, TrainConfig

_D = TrainConfig()
_STYLES = {"worse": "red", "diverged": "red", "better": "green", "baseline": "dim"}


def compare(
    recipes: Annotated[str, typer.Option(help="Comma-separated names [all]; see 'narrowcast recipes'.")] = "",
    baseline: Annotated[str, typer.Option(help="What gaps are measured from.")] = "bf16",
    steps: Annotated[int, typer.Option(help="Optimizer updates of each run.")] = 150,
    seeds: Annotated[int, typer.Option(help="Extra seeds of the baseline, which give the noise floor.")] = 4,
    batch: Annotated[int, typer.Option(help="Sequences per update.")] = _D.batch,
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _D.lr,
    data: DataOption = None,
    model: ModelOption = None,
    out: OutOption = Path("runs/compare"),
    vocab: Annotated[int, typer.Option(help="Size of the BPE trained on the corpus.")] = _D.vocab,
    device: DeviceOption = _D.device,
    wide: WideOption = _D.wide,
    attention: AttentionOption = _D.attention,
    compiled: CompileFlag = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train one model under many recipes and show what each costs in quality and gains in size and speed.

    Every recipe sees the same initial weights and batches; the baseline runs under more seeds, so that every gap
    stands beside the noise. Writes report.html, report.json and one result file per run to --out.

    Example: narrowcast compare --recipes bf16,fp8-rowwise,mxfp4 --steps 100 --out runs/three
    """
    use_threads(threads)
    names = tuple(name.strip() for name in recipes.split(",") if name.strip())
    training = TrainConfig(
        steps=steps,
        batch=batch,
        context=context,
        lr=lr,
        data=data,
        model=model,
        seed=seed,
        eval_every=max(50, steps // 8),
        vocab=vocab,
        device=device,
        wide=wide,
        attention=attention,
        compile=compiled,
    )
    config = CompareConfig(training, names, baseline, seeds)
    command = shlex.join(["narrowcast", *sys.argv[1:]])
    report = _run(config, out, resume=resume, overwrite=overwrite, command=command)
    from narrowcast.report import summary, write

    page = write(report, out)
    emit(report, as_json, lambda: _show(report, summary(report), page))


def _run(config: CompareConfig, out: Path, *, resume: bool, overwrite: bool, command: str) -> dict[str, Any]:
    """Run the comparison under one progress bar over all updates of all runs."""
    with progress() as bar:
        task = bar.add_task("compare", total=len(config.runs) * config.training.steps, note="")

        def on_step(number: int, runs: int, name: str, info: StepInfo) -> None:
            note = f"run {number + 1}/{runs} {name}  loss {info.loss:.3f}"
            bar.update(task, completed=number * info.steps + info.step, note=note)

        return run_comparison(config, out, resume=resume, overwrite=overwrite, on_step=on_step, command=command)


def _show(report: dict[str, Any], findings: list[str], page: Path) -> None:
    """Print the table, what it says in words, and where the page is."""
    corpus, model, training = report["corpus"], report["model"], report["training"]
    console.print(
        f"{model['name']}, {model['parameters']:,} parameters; {corpus['name']}, {corpus['train_tokens']:,} training "
        f"tokens; {training['steps']} steps of {training['tokens_per_step']:,} tokens"
    )
    console.print(f"corpus: {corpus['split']}.")
    if attention := report.get("attention"):  # reports of older versions lack it
        console.print(f"attention: {attention['kind']} ({attention['kernel']}): {attention['why']}.")
    console.print(table(report))
    console.print(f"noise: {report['noise']['explanation']}.")
    for finding in findings:
        console.print(f"- {finding}")
    console.print(f"report: {page}")


def table(report: dict[str, Any]) -> Table:
    """Return the comparison as a table of at most 100 columns."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("recipe", no_wrap=True)
    for heading in ("val\nloss", f"gap\n+-{report['noise']['half_width']:.4f}"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    for heading in ("bits\nw", "bits\nops", "model\nMB", "activ.\nMB", "ms/step\nhere", "H100\n8B ms"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        verdict = Text(row["verdict"], style=_STYLES.get(row["verdict"], ""))
        shown.add_row(
            row["recipe"], _number(row["val_loss"], ".4f"), _number(row["gap"], "+.4f"), verdict, *_costs(row)
        )
    return shown


def _costs(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        _number(row["bits_weights"], ".2f"),
        _number(row["bits_operands"], ".2f"),
        _number(row["model_bytes"] / 1e6, ".2f"),
        _number(row["activation_bytes"] / 1e6, ".1f"),
        _number(row["step_seconds"], ".0f", 1e3),
        _number(row["h100_8b_step_seconds"], ".1f", 1e3),
    )


def _number(value: float | None, spec: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, spec)
