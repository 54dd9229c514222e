"""``narrowcast study``: run one study, or show its committed result."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from narrowcast.cli.common import JsonFlag, SeedOption, ThreadsOption, console, emit, use_threads
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import write_atomic
from narrowcast.report.document import number as figure_text
from narrowcast.report.study import write_study
from narrowcast.studies import Setting, carry_out, committed, data_folder
from narrowcast.studies import study as study_of


def study(
    number: Annotated[int, typer.Argument(help="Number of the study; 'narrowcast studies' lists them.")],
    show: Annotated[bool, typer.Option("--show", help="Show the committed result instead of running.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny version that only shows that it runs.")] = False,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of real data [$NARROWCAST_DATA].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for NN.json and NN.html [runs/studies].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --out.")] = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Try a paper's claim here: measure, check, and write the verdict with its figures as NN.json and NN.html.

    A claim that does not hold is a result too (exit status 0); a failed golden check is not (exit status 1).

    Example: narrowcast study 33 --out runs/studies
    """
    chosen, folder = study_of(number), out or Path("runs/studies")
    if show:
        result = committed(number)
        if result is None:
            raise InputError(f"study {number} has no committed result yet; run it with 'narrowcast study {number}'")
    else:
        if (folder / f"{number:02d}.json").exists() and not overwrite:
            raise InputError(f"{folder / f'{number:02d}.json'}: exists already; replace it with --overwrite")
        use_threads(threads)
        result = carry_out(chosen, Setting(seed, quick, data_folder(data), _note(as_json)), _command())
        write_atomic(folder / f"{number:02d}.json", (json.dumps(result, indent=1) + "\n").encode())
    page = write_study(result, folder)
    emit(result, as_json, lambda: _show(result, page))
    if result["verdict"] == "not valid":
        raise CheckFailed(f"study {number}: a golden check failed, so its figures say nothing of the claim")


def _command() -> str:
    words = sys.argv[1:] if Path(sys.argv[0]).name in ("narrowcast", "__main__.py") else []  # else a test's own
    return shlex.join(["narrowcast", *words])


def _note(as_json: bool) -> Any:
    stderr = Console(stderr=True, markup=False, highlight=False)
    return (lambda line: None) if as_json else lambda line: stderr.print(line, style="dim")


def _show(result: dict[str, Any], page: Path) -> None:
    console.print(f"study {result['number']}: {result['title']}", style="bold")
    for key in ("paper", "claim", "baseline", "treatment", "measure"):
        console.print(f"  {key:<10} {result[key]}")
    console.print()
    table = Table(box=None, pad_edge=False)
    for head in ("check", "found", "expected", ""):
        table.add_column(head, justify="right" if head == "found" else "left")
    for check in result["checks"]:
        state = ("holds" if check["holds"] else "does not hold") + ("" if check["claim"] else " (golden check)")
        table.add_row(check["name"], figure_text(check["found"]), check["expected"], state)
    console.print(table)
    for note in result["notes"]:
        console.print(f"note: {note}", style="dim")
    quick = " (quick run: counts for nothing)" if result["quick"] else ""
    console.print(f"\nverdict: {result['verdict']}{quick}", style="bold")
    console.print(f"page: {page}", soft_wrap=True)
