"""The page about number formats: which numbers exist, how far apart they are, what they lose, and where.

``data`` is plain: ``formats`` (one `analysis.describe.describe` each, with its `analysis.curves.curves`), ``crests``
(`usual_crests`), ``crossings``, and ``against`` (`analysis.tensors.against` and the file's ``name``) or None.
A new section is one function and one row of `_SECTIONS`; a function may return None: nothing to say.
"""

from collections.abc import Callable
from math import log2, prod
from typing import Any

from narrowcast.report.document import Section, render
from narrowcast.report.silicon import silicon

Data = dict[str, Any]

_LABELS = {"normal": "Gaussian", "laplace": "Laplace", "student5": "Student-t, 5 degrees of freedom"}
_LISTED = 8  # widest format, in bits, whose every value is drawn
_PLOTTED = 400  # tensors that a plot shows


def formats_page(data: Data) -> str:
    """Return the page; it needs no network and no other file."""
    names = [row["name"] for row in data["formats"]]
    headline = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    intro = (
        "A number format is a finite set of numbers. This page shows which numbers each format has, how far they "
        "reach, how wide the gaps between them are, and how much of a signal is lost when every value is moved to the "
        "nearest of them.",
        "SQNR is the ratio of signal to rounding error in decibels: more is better, and 6 dB are worth one bit.",
    )
    sections = [section for build in _SECTIONS if (section := build(data)) is not None]
    return render("narrowcast formats", headline, intro, tuple(sections))


def bits_of(row: Data) -> float:
    """Return the bits per element of a described format, scales counted."""
    bits: float = row.get("bits_per_element", float(row["bits"]))
    return bits


# --- at a glance ---


def _glance(data: Data) -> Section:
    columns = ["", "cast", "bits per element", "largest", "smallest", "binades", "bits of precision, at best"]
    rows = [
        [r["name"], r.get("spelling", "no scale of its own"), bits_of(r), r["max"], r["smallest"],
         round(r["reach"]["binades"], 1), round(-log2(r["reach"]["finest"]), 2)]
        for r in data["formats"]
    ]  # fmt: skip
    quality = [(row, row["sqnr_db"]["normal"]["as given"]) for row in data["formats"]]
    series = [
        {"name": r["name"], "x": [bits_of(r)], "y": [db], "mode": "labels"} for r, db in quality if db is not None
    ]
    plot = {"title": "What a bit buys on Gaussian data", "x": "bits per element, scales counted", "y": "SQNR, dB"}
    text = (
        "Largest and smallest are those of the element format, before any scale. A binade is a factor of two; the "
        "binades between the smallest and the largest positive value are the dynamic range.",
    )
    table = {"title": "", "columns": columns, "rows": rows}
    return Section("At a glance", text, (table,), ({**plot, "series": series},) if len(series) > 1 else ())


# --- which numbers, how far apart ---


def _elements(data: Data) -> list[Data]:
    """Return one row per element format, under its own name."""
    return list({row["element"]: {**row, "name": row["element"]} for row in data["formats"]}.values())


def _values(data: Data) -> Section | None:
    listed = [row for row in _elements(data) if row["bits"] <= _LISTED]
    if not listed:
        return None
    size = {"y": "", "height": 110 + 46 * len(listed), "wide": True}
    whole = [_ticks(row, [value / row["max"] for value in row["values"]]) for row in listed]
    half = [_ticks(row, [value for value in row["values"] if value > 0]) for row in listed]
    plots = (
        {"title": "Every value, scaled so that the largest is 1", "x": "value / largest", "series": whole, **size},
        {"title": "Every positive value, as it is", "x": "value", "log_x": True, "series": half, **size},
    )
    text = (
        "Each tick is a number that the format has. Integers lie evenly; floats crowd around zero, which is where most "
        "weights and activations are. On the logarithmic line floats are even, and integers crowd at the top.",
    )
    return Section("Which numbers exist", text, plots=plots)


def _ticks(row: Data, x: list[float]) -> Data:
    return {"name": row["name"], "x": x, "y": [row["name"]] * len(x), "mode": "ticks"}


def _spacing(data: Data) -> Section | None:
    stairs = [(row["name"], row["spacing"]) for row in _elements(data) if row["spacing"]["magnitude"]]
    if not stairs:
        return None
    gaps = [{"name": name, "x": at["magnitude"], "y": at["gap"], "mode": "steps"} for name, at in stairs]
    shares = [{"name": name, "x": at["magnitude"], "y": _shares(at)} for name, at in stairs]
    axes = {"x": "magnitude", "log_x": True, "log_y": True}
    plots = (
        {"title": "Gap to the next number", "y": "gap", "series": gaps, **axes},
        {"title": "Largest rounding error, relative", "y": "half a gap / magnitude", "series": shares, **axes},
    )
    text = (
        "The gap of integers is the same everywhere, so small numbers suffer; that of floats grows with the number, "
        "one stair per binade, so the relative error stays within a factor of two until the subnormals at the left "
        "end. Tapered formats are finest around 1 and coarser towards both ends.",
    )
    return Section("Spacing against magnitude", text, plots=plots)


def _shares(spacing: Data) -> list[float]:
    return [gap / magnitude / 2 for magnitude, gap in zip(spacing["magnitude"], spacing["gap"], strict=True)]


# --- what is lost ---


def _losses(data: Data) -> Section:
    of = {law: {row["name"]: row["sqnr_db"][law] for row in data["formats"]} for law in _LABELS}
    tables = [_by_tile(label, of[law]) for law, label in _LABELS.items()]
    plots = [_tile_plot(_LABELS[law], of[law]) for law in ("normal", "student5")]  # the lightest tails and the heaviest
    text = (
        "A tile is a group of elements that share one scale. Small tiles keep an outlier from spoiling its neighbours, "
        "at the price of more scales to store. 'As given' is the cast as it was named; a bare format stands there with "
        "the one fixed scale that suits the distribution best, and in the other columns under a float32 scale per "
        "tile (its largest value meets the top of the format, or where a tapered format is finest). A dash: nothing is "
        "lost. Judged on 256 x 1024 seeded draws of variance 1; weights are close to Gaussian, activations and "
        "gradients have heavier tails, as the other two.",
    )
    return Section("What is lost, by distribution and tile size", text, tuple(tables), tuple(plots))


def _by_tile(title: str, of: dict[str, dict[str, float | None]]) -> Data:
    tiles = list(next(iter(of.values())))
    rows = [[name, *(_rounded(at[tile]) for tile in tiles)] for name, at in of.items()]
    return {"title": f"{title}: SQNR in dB", "columns": ["", *tiles], "rows": rows}


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _tile_plot(title: str, of: dict[str, dict[str, float | None]]) -> Data:
    tiles = list(next(iter(of.values())))[1:]
    series = [{"name": n, "x": tiles, "y": [at[t] for t in tiles], "mode": "lines+markers"} for n, at in of.items()]
    return {"title": f"{title}: SQNR by tile size", "x": "tile", "y": "SQNR, dB", "series": series}


# --- the crest factor ---


def _crest(data: Data) -> Section:
    laws = [(f"{row['name']}, blocks of {row['crest']['block']}", row["crest"]) for row in data["formats"]]
    series = [{"name": name, "x": law["crest"], "y": law["sqnr_db"]} for name, law in laws]
    plot = {"title": "SQNR of Gaussian blocks against their crest factor", "x": "crest factor", "y": "SQNR, dB"}
    text = (
        "The crest factor of a block is its largest magnitude over its root mean square. An integer grid must reach "
        "the largest value, so each doubling of the crest factor costs it 6 dB; a float's error is relative, so it "
        "hardly cares until small values fall among its subnormals. Which of two formats is better is therefore a "
        "matter of the crest factors of the data (after arXiv 2510.25602). No block of n elements has a crest factor "
        "above the square root of n: that is where the curves end, all but the largest value being noise there.",
    )
    tables = (*_crossings(data), _expected(data["crests"]))
    return Section("Integers or floats: the crest factor decides", text, tables, ({**plot, "series": series},))


def _expected(crests: list[Data]) -> Data:
    """Return the table of crest factors: a row per distribution, a column per tile."""
    tiles = list(dict.fromkeys(row["tile"] for row in crests))
    cells: dict[str, list[str]] = {}
    for row in crests:
        cells.setdefault(row["distribution"], []).append(f"{row['median']:.2f} ({row['max']:.2f})")
    rows = [[name, *medians] for name, medians in cells.items()]
    return {"title": "Crest factors to expect: median (largest)", "columns": ["", *tiles], "rows": rows}


def _crossings(data: Data) -> tuple[Data, ...]:
    rows = [[r["below"], r["above"], _rounded(r["crest"]), _rounded(r["sqnr_db"])] for r in data["crossings"]]
    columns = ["better below", "better above", "crest factor", "SQNR there, dB"]
    return ({"title": "Where two of them cross", "columns": columns, "rows": rows},) if rows else ()


# --- a file ---


def _file(data: Data) -> Section | None:
    found = data["against"]
    if found is None:
        return None
    said = [
        f"{len(found['tensors'])} matrices, tiles along the axis that a matrix product sums over. Pooled: the sum of "
        "all signals over the sum of all errors. A bare format, as given, has no scale at all.",
    ]
    if found["passed_over"]:
        said.append(f"{len(found['passed_over'])} other tensors (biases, norms, integers) were passed over.")
    if sampled := [r for r in found["tensors"] if r["judged"] < prod(r["shape"])]:
        said.append(f"Of {len(sampled)} large tensors evenly spaced rows were judged.")
    names = list(found["pooled"])
    tables = (_by_tile("Pooled", found["pooled"]), _tensors(found, names))
    plots = (_tile_plot("Pooled", found["pooled"]), _scatter(found, names))
    return Section(f"On {found['name']}", (" ".join(said),), tables, plots)


def _tensors(found: Data, names: list[str]) -> Data:
    rows, tiles = [], found["compared"]
    for row in found["tensors"]:
        at = [row["sqnr_db"][name][tiles[name]] for name in names]
        crest = _rounded(row["crest"]["median"] if row["crest"] else None)
        rows.append([row["name"], "x".join(map(str, row["shape"])), crest, *map(_rounded, at), _best(names, at)])
    head = ["tensor", "shape", "median crest factor, blocks of 32", *(f"{n}, {tiles[n]}" for n in names), "best"]
    return {"title": "Tensor by tensor: SQNR in dB", "columns": head, "rows": rows}


def _best(names: list[str], at: list[float | None]) -> str:
    exact = [name for name, decibels in zip(names, at, strict=True) if decibels is None]
    return exact[0] if exact else max(zip(at, names, strict=True), key=lambda pair: pair[0] or 0.0)[1]


def _scatter(found: Data, names: list[str]) -> Data:
    rows = [row for row in found["tensors"] if row["crest"]][:_PLOTTED]
    series = [_points(name, [row for row in rows if row["sqnr_db"][name]["1x32"] is not None]) for name in names]
    axes = {"x": "median crest factor, blocks of 32", "y": "SQNR in blocks of 32, dB"}
    return {"title": "Each tensor: SQNR against its crest factor", "series": series, **axes}


def _points(name: str, rows: list[Data]) -> Data:
    x, y = [row["crest"]["median"] for row in rows], [row["sqnr_db"][name]["1x32"] for row in rows]
    return {"name": name, "x": x, "y": y, "text": [row["name"] for row in rows], "mode": "markers"}


_SECTIONS: tuple[Callable[[Data], Section | None], ...] = (_glance, _values, _spacing, _losses, _crest, silicon, _file)
