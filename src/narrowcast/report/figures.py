"""The plots, as plain Plotly figures (dictionaries): data and layout, no drawing."""

import math
from collections.abc import Sequence
from typing import Any

from narrowcast.report.theme import COLOURS, DASHES, LABEL, Figure
from narrowcast.report.theme import layout as plain


def colours(report: dict[str, Any]) -> dict[str, str]:
    """Return one colour per recipe, the same in every plot; the baseline is black."""
    names = [report["baseline"], *(r["recipe"] for r in report["rows"] if r["recipe"] != report["baseline"])]
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def dashes(report: dict[str, Any]) -> dict[str, str]:
    """Return one dash per recipe, for its lines in every plot."""
    names = list(colours(report))
    return {name: DASHES[2 * i // max(len(names), 2)] for i, name in enumerate(names)}


def finished(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that ended with a loss."""
    return [r for r in report["rows"] if not r["diverged"]]


def gap_figure(report: dict[str, Any]) -> Figure:
    """Gap against bits per operand element, with the noise band and direct labels."""
    rows, shade = finished(report), colours(report)
    width = report["noise"]["half_width"]
    points = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [row["bits_operands"]],
            "y": [row["gap"]],
            "text": [row["recipe"]],
            "marker": {"size": 11, "color": shade[row["recipe"]]},
            "hovertemplate": "%{text}<br>%{x:.2f} bits<br>gap %{y:+.4f}<extra></extra>",
            "showlegend": False,
        }
        for row in rows
    ]
    ticks = [4, 6, 8, 12, 16, 24, 32]
    layout = plain("bits per operand element, scales counted", "gap in validation loss (nats)", height=460)
    layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [str(t) for t in ticks], "range": [0.5, 1.62]}
    layout["shapes"] = [_band(width)]
    layout["annotations"] = [
        *_labels(rows, shade),
        {
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": width,
            "yanchor": "bottom",
            "showarrow": False,
            "text": "noise floor: a change of seed does as much",
            "font": {"size": 12, "color": "#0072B2"},
        },
    ]
    return {"data": points, "layout": layout}


def _band(width: float, middle: float = 0.0) -> Figure:
    """Return the noise floor as a band across the plot."""
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": middle - width,
        "y1": middle + width,
        "fillcolor": "#0072B2",
        "opacity": 0.10,
        "line": {"width": 0},
        "layer": "below",
    }


def _labels(rows: list[dict[str, Any]], shade: dict[str, str]) -> list[dict[str, Any]]:
    """Name every point beside it. Points of like width form a column, whose names stand apart on both sides."""
    columns: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: -r["gap"]):
        columns.setdefault(round(3 * math.log2(row["bits_operands"])), []).append(row)
    labels = []
    for column in columns.values():
        for place, row in enumerate(column):
            side = 1 if place % 2 == 0 else -1
            labels.append(
                {
                    "x": math.log10(row["bits_operands"]),
                    "y": row["gap"],
                    "text": row["recipe"],
                    "showarrow": True,
                    "arrowhead": 0,
                    "arrowwidth": 1,
                    "arrowcolor": shade[row["recipe"]],
                    "standoff": 6,
                    "ax": 28 * side,
                    "ay": 15 * (place - (len(column) - 1) / 2),
                    "xanchor": "left" if side > 0 else "right",
                    "font": LABEL,
                }
            )
    return labels


def loss_figure(report: dict[str, Any], kind: str) -> Figure:
    """Loss against steps: ``kind`` is "val" or "train" (smoothed; a run that diverged ends where it did)."""
    lines = []
    for row in report["rows"]:
        if row[kind]:
            steps, losses = zip(*row[kind], strict=True)
            lines.append(_line(report, row, list(steps), list(losses) if kind == "val" else _smooth(list(losses))))
    return {"data": lines, "layout": plain("step", "nats per token", height=360, showlegend=False)}


def native(report: dict[str, Any]) -> bool:
    """Return whether any recipe ran on fast kernels, so that its clock says something."""
    return any(site["backend"] == "native" for row in report["rows"] for site in row["conversion"])


def clock_figure(report: dict[str, Any]) -> Figure:
    """Validation loss against the time spent on updates, in seconds: steps times the median time of one."""
    lines = []
    for row in finished(report):
        steps, losses = zip(*row["val"], strict=True)
        line = _line(report, row, [round(step * row["step_seconds"], 3) for step in steps], list(losses))
        lines.append({**line, "hovertemplate": f"{row['recipe']}<br>%{{x:.1f}} s<br>%{{y:.4f}}<extra></extra>"})
    return {"data": lines, "layout": plain("seconds of updates", "nats per token", height=360, showlegend=False)}


def drift_figure(report: dict[str, Any]) -> Figure:
    """Validation loss minus that of the baseline's paired run at the same step, with names at the line ends.

    The band is the final noise floor. It lies around the mean of the baseline's seeds, from which the paired run ended
    by its own gap.
    """
    width, rows = report["noise"]["half_width"], [r for r in finished(report) if r["val"]]
    paired = next(r for r in report["rows"] if r["recipe"] == report["baseline"])
    base: dict[int, float] = dict(paired["val"])
    curves = {r["recipe"]: [(step, loss - base[step]) for step, loss in r["val"] if step in base] for r in rows}
    rows = [r for r in rows if curves[r["recipe"]]]
    lines = [
        _line(report, r, [s for s, _ in curves[r["recipe"]]], [g for _, g in curves[r["recipe"]]], "+.4f") for r in rows
    ]
    every = [width - paired["gap"], -width - paired["gap"], *(gap for curve in curves.values() for _, gap in curve)]
    low, high = min(every), max(every)
    margin = 0.06 * (high - low) or 0.01
    height, top, bottom = 460, 10, 50
    layout = plain("step", "loss minus baseline's (nats)", height=height, showlegend=False)
    longest = max((len(r["recipe"]) for r in rows), default=0)
    layout["margin"] = {"l": 60, "r": min(max(115, 30 + 7 * longest), 320), "t": top, "b": bottom}
    layout["yaxis"] |= {"range": [low - margin, high + margin]}
    last = max((curve[-1][0] for curve in curves.values() if curve), default=1)
    layout["xaxis"] |= {"range": [0, last]}  # the names stand in the margin
    layout["shapes"] = [_band(width, -paired["gap"])]
    pixels = (height - top - bottom) / (high - low + 2 * margin)
    ends = sorted(((curves[r["recipe"]][-1], r["recipe"]) for r in rows), key=lambda end: -end[0][1])
    shifts = _apart([-gap * pixels for (_, gap), _ in ends], 15.0)
    layout["annotations"] = [
        {"x": step, "y": gap, "text": name, "font": LABEL, "xanchor": "left", "showarrow": True, "arrowhead": 0,
         "arrowwidth": 1, "arrowcolor": colours(report)[name], "standoff": 3, "ax": 22, "ay": shift}
        for ((step, gap), name), shift in zip(ends, shifts, strict=True)
    ]  # fmt: skip
    return {"data": lines, "layout": layout}


def _apart(places: list[float], least: float) -> list[float]:
    """Return how far to move each of the ascending ``places`` (pixels) so that neighbours are ``least`` apart."""
    groups: list[tuple[float, int]] = []  # (sum of the tops wished for, labels); these stand one under the other
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and _top(groups[-1]) < _top(groups[-2]) + groups[-2][1] * least:
            total, count = groups.pop()
            above, number = groups.pop()
            groups.append((above + total - count * number * least, number + count))
    put = [_top(g) + i * least for g in groups for i in range(g[1])]
    return [round(new - old, 1) for new, old in zip(put, places, strict=True)]


def _top(group: tuple[float, int]) -> float:
    return group[0] / group[1]


def _line(report: dict[str, Any], row: dict[str, Any], x: Sequence[float], y: list[float], spec: str = ".4f") -> Figure:
    name = row["recipe"]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": y,
        "line": {
            "color": colours(report)[name],
            "dash": dashes(report)[name],
            "width": 3 if name == report["baseline"] else 1.8,
        },
        "hovertemplate": f"{name}<br>step %{{x}}<br>%{{y:{spec}}}<extra></extra>",
    }


def _smooth(values: list[float], share: float = 0.9) -> list[float]:
    """Return the bias-corrected exponential mean of ``values``."""
    mean, weight, out = 0.0, 0.0, []
    for v in values:
        mean, weight = share * mean + (1 - share) * v, share * weight + (1 - share)
        out.append(round(mean / weight, 5))
    return out


def heat_maps(report: dict[str, Any]) -> dict[str, Any]:
    """Return per recipe the layers, the operands, and one matrix for each measure, for the page's selects."""
    maps = {}
    for row in finished(report):
        if not row["sites"]:
            continue
        sites = list(dict.fromkeys(s["site"] for s in row["sites"]))
        operands = list(dict.fromkeys(s["operand"] for s in row["sites"]))
        cells = {(s["site"], s["operand"]): s for s in row["sites"]}
        maps[row["recipe"]] = {
            "sites": [site.removeprefix("model.").replace("layers.", "") for site in sites],
            "operands": operands,
            **{
                measure: [[cells[site, o][measure] for o in operands] for site in sites]
                for measure in ("sqnr_db", "underflow", "saturate")
            },
        }
    return maps
