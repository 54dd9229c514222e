"""The plots, as plain Plotly figures (dictionaries): data and layout, no drawing."""

import math
from typing import Any

Figure = dict[str, Any]

# Okabe and Ito's palette, told apart by colour-blind readers, and darker relatives for the rest.
_COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#8C510A", "#5E4FA2", "#66A61E", "#A6761D", "#666666",
)  # fmt: skip
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#222"}
_AXIS = {"gridcolor": "#e6e6e6", "zerolinecolor": "#bbb", "linecolor": "#bbb", "automargin": True}


def colours(report: dict[str, Any]) -> dict[str, str]:
    """Return one colour per recipe, the same in every plot; the baseline is black."""
    names = [report["baseline"], *(r["recipe"] for r in report["rows"] if r["recipe"] != report["baseline"])]
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {
        "font": _FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "xaxis": {**_AXIS, "title": {"text": x}},
        "yaxis": {**_AXIS, "title": {"text": y}},
        "hovermode": "closest",
        **more,
    }


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
    layout = _layout("bits per operand element, scales counted", "gap in validation loss (nats)", height=460)
    layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [str(t) for t in ticks], "range": [0.5, 1.62]}
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": -width,
            "y1": width,
            "fillcolor": "#0072B2",
            "opacity": 0.10,
            "line": {"width": 0},
            "layer": "below",
        }
    ]
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
                    "arrowcolor": "#bbb",
                    "standoff": 6,
                    "ax": 28 * side,
                    "ay": 15 * (place - (len(column) - 1) / 2),
                    "xanchor": "left" if side > 0 else "right",
                    "font": {"size": 12, "color": shade[row["recipe"]]},
                }
            )
    return labels


def loss_figure(report: dict[str, Any], kind: str) -> Figure:
    """Loss against steps: ``kind`` is "val" or "train" (smoothed by a running mean)."""
    shade, lines = colours(report), []
    for row in finished(report):
        steps, losses = zip(*row[kind], strict=True)
        base = row["recipe"] == report["baseline"]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if kind == "val" else "lines",
                "name": row["recipe"],
                "x": list(steps),
                "y": list(losses) if kind == "val" else _smooth(list(losses)),
                "line": {"color": shade[row["recipe"]], "width": 3 if base else 1.5},
                "hovertemplate": f"{row['recipe']}<br>step %{{x}}<br>%{{y:.4f}}<extra></extra>",
            }
        )
    name = "validation loss" if kind == "val" else "training loss, smoothed"
    legend = {"orientation": "h", "y": -0.18, "font": {"size": 12}}
    return {"data": lines, "layout": _layout("step", f"{name} (nats per token)", height=440, legend=legend)}


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
