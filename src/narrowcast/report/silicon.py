"""The section of the formats page about what arithmetic in a format costs in silicon."""

from typing import Any

from narrowcast.analysis.hardware import CONSTANTS, trust
from narrowcast.report.document import Section

_PARTS = ("multiplier", "exponent", "shifter", "accumulator", "decoder")


def silicon(data: dict[str, Any]) -> Section | None:
    """Return cost per element format, the plot of quality against cost, and where every constant comes from."""
    rows = list({r["element"]: r for r in data["formats"] if "hardware" in r}.values())
    if not rows:
        return None
    costs = [
        [r["element"], *(r["hardware"][part] for part in _PARTS), *_totals(r["hardware"]), r["hardware"]["lanes"]]
        for r in rows
    ]
    columns = [
        "element",
        *(f"{part}, gates" for part in _PARTS),
        "all gates",
        "energy, pJ",
        "area, um²",
        "lanes of 16 bits",
    ]
    sources = [[c.name, c.value, c.unit, c.source] for c in CONSTANTS]
    held = [[name, ratio] for name, ratio in trust().items()]
    tables = (
        {"title": "A unit that sums 1,024 products exactly", "columns": columns, "rows": costs},
        {"title": "Constants", "columns": ["constant", "value", "unit", "source"], "rows": sources},
        {"title": "Published energy over modelled", "columns": ["multiplier", "ratio"], "rows": held},
    )
    return Section("What a multiply-accumulate costs", _TEXT, tables, _pareto(data))


_TEXT = (
    "A model, not a synthesis: an array multiplier, an exponent adder and a shifter where a format has more than one "
    "binade, and an accumulator wide enough for every exact product of the two formats; posits and tables pay for a "
    "decoder. Scales are not counted. Gates are two-input NAND equivalents; area and energy are those of a published "
    "45 nm process. The table of ratios shows how far it can be trusted: float multipliers in use also normalise and "
    "round.",
    "In the plot, further up is better and further left is cheaper; what lies below and to the right of another is not "
    "worth building.",
)


def _totals(unit: dict[str, Any]) -> list[Any]:
    return [unit["gates"], unit["energy"], unit["area"]]


def _pareto(data: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    found = [
        (r["name"], r["hardware"]["gates"], r["sqnr_db"]["normal"]["as given"])
        for r in data["formats"]
        if "hardware" in r
    ]
    series = [{"name": n, "x": [g], "y": [db], "mode": "labels"} for n, g, db in found if db is not None]
    plot = {
        "title": "Quality on Gaussian data against cost",
        "x": "gates of a multiply-accumulate",
        "y": "SQNR, dB",
        "log_x": True,
    }
    return ({**plot, "series": series},) if len(series) > 1 else ()
