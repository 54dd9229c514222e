"""``narrowcast report``."""

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.report import load, summary, write


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished comparison, or of a quantized model.")],
    as_json: JsonFlag = False,
) -> None:
    """Rebuild report.html from the report.json of a finished comparison, or of a quantized model.

    Example: narrowcast report runs/compare
    """
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
