"""``narrowcast report``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.errors import InputError
from narrowcast.io.files import sized
from narrowcast.report import load, summary, write


def report(
    runs: Annotated[list[Path], typer.Argument(help="A finished comparison, or one or more quantized models.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the page of several quantized models side by side.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rebuild report.html of a finished comparison or of a quantized model; or lay several such models side by side.

    Example: narrowcast report model-int4 model-fp8 model-nvfp4 --out runs/beside
    """
    if len(runs) > 1 or out is not None:
        _beside(runs, out, as_json)
        return
    (run,) = runs
    if (run / "config.json").is_file():
        _quantized(run, as_json)
        return
    found = load(run / "report.json")
    page = write(found, run)

    def show() -> None:
        for sentence in summary(found):
            console.print(sentence, highlight=False)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)

    emit({"report": str(page), "summary": summary(found)}, as_json, show)


def _quantized(model: Path, as_json: bool) -> None:
    """Rebuild the page of a quantized model."""
    from narrowcast.report.quantize import advice, headline, load_quantized_report, write_quantized

    found = load_quantized_report(model / "report.json")
    page = write_quantized(found, model)
    lines = [headline(found), advice(found)]
    shown = "\n".join([*lines, f"report: {page}"])
    emit({"report": str(page), "summary": lines}, as_json, lambda: console.print(shown))


def _beside(models: list[Path], out: Path | None, as_json: bool) -> None:
    """Write the page of several quantized models, or print the table alone."""
    from narrowcast.report.beside import beside, write_beside
    from narrowcast.report.quantize import load_quantized_report

    found = beside([load_quantized_report(model / "report.json") for model in models])
    if out is not None and (out / "config.json").is_file():
        raise InputError(f"--out {out}: holds a model, whose own page would be lost; give another folder")
    page = write_beside(found, out) if out is not None else None
    emit({**found, "report": str(page) if page else None}, as_json, lambda: _show(found, page))


def _show(found: dict[str, Any], page: Path | None) -> None:
    from narrowcast.report.beside import rise, sentence

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    for heading in ("size", "times\nsmaller", "perplexity\nrise", "KL,\nnats", "same\ntoken"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in found["rows"]:
        table.add_row(
            row["recipe"], sized(row["bytes"]), f"{found['bytes'] / row['bytes']:.2f}", f"{rise(found, row):+.2f} %",
            f"{row['divergence']:.4f}", f"{100 * row['agreement']:.1f} %", "" if row["best"] else "beaten",
        )  # fmt: skip
    console.print(table)
    console.print(sentence(found))
    if page is not None:
        console.print(f"report: {page}", soft_wrap=True)
