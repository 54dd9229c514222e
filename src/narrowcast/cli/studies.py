"""``narrowcast studies``: the papers, what each claims, and what was measured here."""

from typing import Any

from rich.table import Table

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.studies import committed, numbers, study


def studies(as_json: JsonFlag = False) -> None:
    """List the studies: paper, claim, and the verdict of the committed result with its machine and date.

    Example: narrowcast studies
    """
    rows = [_row(number) for number in numbers()]
    emit({"studies": rows}, as_json, lambda: _show(rows))


def _row(number: int) -> dict[str, Any]:
    result = committed(number)
    ran = result["versions"] if result else {}
    return {
        **study(number).facts(),
        "verdict": result["verdict"] if result else None,
        "machine": ran.get("gpu") or ran.get("cpu"),
        "date": ran.get("date"),
        "command": result["command"] if result else None,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("study", justify="right")
    for head in ("claim", "verdict here", "machine, date"):
        table.add_column(head)
    for row in rows:
        where = f"{row['machine']}, {row['date']}" if row["verdict"] else ""
        table.add_row(str(row["number"]), row["claim"], row["verdict"] or "not run yet", where)
    console.print(table)
    console.print("\nnarrowcast study N --show prints one with its figures; narrowcast study N runs it again")
