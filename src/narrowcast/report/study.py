"""The page of one study: what a paper claims, what was measured here, and the verdict."""

from html import escape
from pathlib import Path
from typing import Any

from narrowcast.io import write_atomic
from narrowcast.report.document import Section, number, render
from narrowcast.report.tables import cell, table

_CSS = {"holds": "better", "holds in part": "same", "does not hold here": "worse", "not valid": "worse"}


def study_page(result: dict[str, Any]) -> str:
    """Return the page of a study's result (what ``studies/results/NN.json`` holds)."""
    intro = (result["claim"], f"{result['paper']}. Sheet {result['number']:02d}.")
    protocol = {
        "title": "",
        "columns": ["", ""],
        "rows": [[key, result[key]] for key in ("baseline", "treatment", "measure", "expected")],
    }
    sections = [
        Section("Verdict", html=_verdict(result), text=tuple(result["notes"])),
        Section("What was compared", tables=(protocol,)),
        Section("What was measured", tables=tuple(result["tables"]), plots=tuple(result["plots"])),
        Section("Facts", tables=(_facts(result),)),
    ]
    return render(f"narrowcast study {result['number']}", result["title"], intro, tuple(sections))


def write_study(result: dict[str, Any], folder: Path) -> Path:
    """Write ``folder/NN.html`` atomically and return its path."""
    path = folder / f"{result['number']:02d}.html"
    write_atomic(path, study_page(result).encode())
    return path


def _verdict(result: dict[str, Any]) -> str:
    word = result["verdict"]
    rows = [
        [
            cell(check["name"]),
            cell(number(check["found"]), css="n"),
            cell(check["expected"]),
            cell("claim" if check["claim"] else "golden check"),
            f'<td><span class="verdict {"better" if check["holds"] else "worse"}">'
            f"{'holds' if check['holds'] else 'does not hold'}</span></td>",
        ]
        for check in result["checks"]
    ]
    chip = f'<p><span class="verdict {_CSS[word]}">{escape(word)}</span></p>'
    return chip + table(["check", "found", "expected", "kind", ""], rows, "data")


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    rows = [["command", result["command"]], ["seconds", result["seconds"]], ["seed", result["seed"]]]
    rows += [[key, value] for key, value in result["versions"].items()]
    return {"title": "", "columns": ["", ""], "rows": rows}
