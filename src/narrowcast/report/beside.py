"""Several quantizations of one model side by side: size, speed and loss, and which of them nothing beats (Pareto)."""

from pathlib import Path
from typing import Any

from narrowcast.errors import InputError
from narrowcast.io import write_atomic
from narrowcast.io.files import sized
from narrowcast.metrics import perplexity
from narrowcast.report.document import Section, render
from narrowcast.report.quantize import Report

KIND = "narrowcast-quantized-beside"


def beside(reports: list[Report]) -> dict[str, Any]:
    """Return what a page or a README shows of reports of one model, smallest first, as plain values.

    Raises InputError for fewer than two reports, for one that was not judged, and for some that were not judged alike.
    """
    if len(reports) < 2:
        raise InputError("side by side: expected at least two quantized models")
    for report in reports:
        if report["judgement"] is None:
            raise InputError(f"{report['recipe']['name']}: was not judged; quantize it again with --data TEXT")
        _alike(reports[0], report)
    first = reports[0]
    rows = sorted((_row(report) for report in reports), key=lambda row: (row["bytes"], row["loss"]))
    return {
        "kind": KIND,
        "model": first["model"],
        "tokens": first["judgement"]["tokens"],
        "source": first["calibration"]["source"],
        "loss": first["judgement"]["before"],
        "bytes": first["bytes_before"],
        "decode": first["plan"]["speed"]["before"]["decode"],
        "gpu": first["plan"]["speed"]["gpu"],
        "versions": first["versions"],
        "rows": [{**row, "best": not any(_beats(other, row) for other in rows)} for row in rows],
    }


def _alike(one: Report, other: Report) -> None:
    """Raise InputError unless both were judged on the same text, of the same model."""
    name = other["recipe"]["name"]
    for what, a, b in (
        ("model", one["model"]["name"], other["model"]["name"]),
        ("tokens judged", one["judgement"]["tokens"], other["judgement"]["tokens"]),
        ("loss of the original", round(one["judgement"]["before"], 5), round(other["judgement"]["before"], 5)),
        ("GPU", one["plan"]["speed"]["gpu"], other["plan"]["speed"]["gpu"]),
    ):
        if a != b:
            raise InputError(
                f"{name}: {what} {b}, but {a} for {one['recipe']['name']}; quantize both with the same options"
            )


def _row(report: Report) -> dict[str, Any]:
    found = report["judgement"]
    return {
        "recipe": report["recipe"]["name"],
        "summary": report["recipe"]["summary"],
        "bytes": report["bytes_after"],
        "decode": report["plan"]["speed"]["after"]["decode"],
        "loss": found["after"],
        "divergence": found["divergence"],
        "agreement": found["agreement"],
        "command": report["command"],
    }


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether ``one`` is as small and as good, and not the same in both."""
    no_worse = one["bytes"] <= other["bytes"] and one["loss"] <= other["loss"]
    return no_worse and (one["bytes"], one["loss"]) != (other["bytes"], other["loss"])


def rise(found: dict[str, Any], row: dict[str, Any]) -> float:
    """Return by how many percent perplexity rose."""
    return 100 * (perplexity(row["loss"] - found["loss"]) - 1)


def sentence(found: dict[str, Any]) -> str:
    """Return the choice that the rows leave, in one sentence."""
    best = [row for row in found["rows"] if row["best"]]
    told = "; ".join(
        f"{row['recipe']} ({found['bytes'] / row['bytes']:.1f}x smaller, {rise(found, row):+.1f} % perplexity)"
        for row in best
    )
    beaten = len(found["rows"]) - len(best)
    rest = f"; one of these beats each of the other {beaten}" if beaten else ""
    return f"Worth choosing between: {told}{rest}."


def beside_page(found: dict[str, Any]) -> str:
    """Return the page of what `beside` returned."""
    columns = [
        "recipe", "what", "size", "times smaller", "predicted decode, ms per token", "perplexity", "rise, %",
        "KL divergence, nats", "same likeliest token, %", "beaten",
    ]  # fmt: skip
    original = ["(original)", "", sized(found["bytes"]), 1.0, found["decode"] * 1e3, perplexity(found["loss"]), 0.0,
                0.0, 100.0, ""]  # fmt: skip
    rows = [original, *(_cells(found, row) for row in found["rows"])]
    text = (
        f"Judged on {found['tokens']:,} tokens of: {found['source']}. Sizes count scales and what stays wide; speeds "
        f"are a roofline's for {found['gpu']}, the original as stored in 16 bits.",
    )
    sections = (
        Section("Side by side", text, ({"title": "", "columns": columns, "rows": rows},)),
        Section("Quality against size", (_PARETO,), plots=(_plot(found),)),
        Section("Facts", tables=(_facts(found),)),
    )
    name = found["model"]["name"]
    return render("narrowcast report", f"{len(found['rows'])} quantizations of {name}", (sentence(found),), sections)


def write_beside(found: dict[str, Any], folder: Path) -> Path:
    """Write ``folder/report.html`` atomically and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_atomic(path, beside_page(found).encode())
    return path


_PARETO = (
    "Lower is better, further left is smaller. On the line lies what nothing beats in both; everything above it costs "
    "quality or bytes for nothing."
)


def _cells(found: dict[str, Any], row: dict[str, Any]) -> list[Any]:
    return [
        row["recipe"], row["summary"], sized(row["bytes"]), found["bytes"] / row["bytes"], row["decode"] * 1e3,
        perplexity(row["loss"]), rise(found, row), row["divergence"], 100 * row["agreement"],
        "" if row["best"] else "yes",
    ]  # fmt: skip


def _plot(found: dict[str, Any]) -> dict[str, Any]:
    best = [row for row in found["rows"] if row["best"]]
    front = {"name": "nothing beats these", "mode": "steps", "x": [row["bytes"] / 1e6 for row in best],
             "y": [perplexity(row["loss"]) for row in best]}  # fmt: skip
    points = [
        {"name": row["recipe"], "mode": "labels", "x": [row["bytes"] / 1e6], "y": [perplexity(row["loss"])]}
        for row in found["rows"]
    ]
    original = {"name": "original", "mode": "labels", "x": [found["bytes"] / 1e6], "y": [perplexity(found["loss"])]}
    return {"title": "Perplexity against size", "x": "MB of weights", "y": "perplexity",
            "wide": True, "height": 520, "series": [front, *points, original]}  # fmt: skip


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    rows = [[row["recipe"], row["command"] or "(called from Python)"] for row in found["rows"]]
    rows += [[key, value] for key, value in found["versions"].items()]
    return {"title": "", "columns": ["", ""], "rows": rows}
