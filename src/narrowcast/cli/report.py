"""``narrowcast report``."""

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.report import load, summary, write


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished comparison.")], as_json: JsonFlag = False
) -> None:
    """Rebuild report.html from the report.json of a finished comparison.

    Example: narrowcast report runs/compare
    """
    found = load(run / "report.json")
    page = write(found, run)

    def show() -> None:
        for sentence in summary(found):
            console.print(sentence, highlight=False)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)

    emit({"report": str(page), "summary": summary(found)}, as_json, show)
