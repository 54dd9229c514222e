"""How every plot of ours looks, and how a plot that is given as data becomes a Plotly figure.

A plot is plain data, so that result files can hold it:

    {"title", "x", "y", "log_x", "log_y", "series": [{"name", "x": [...], "y": [...], "mode"}]}

``mode`` is ``lines``, ``steps``, ``markers``, ``lines+markers``, ``bars``, ``ticks`` (short strokes at words on the y
axis, the first on top) or ``labels`` (markers with the name beside each). A series' ``text`` is shown for each point. A
plot may also have a ``height`` in pixels, and be ``wide``: two others stand side by side where there is room.
"""

import math
from typing import Any

Figure = dict[str, Any]

# Okabe and Ito's palette, told apart by colour-blind readers, and darker relatives for the rest.
COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#8C510A", "#5E4FA2", "#66A61E", "#A6761D", "#666666",
)  # fmt: skip
DASHES = ("solid", "dash")  # the second half of many lines is dashed: a second sign beside the colour
LABEL = {"size": 12, "color": "#222"}
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#222"}
AXIS = {"gridcolor": "#e6e6e6", "zerolinecolor": "#bbb", "linecolor": "#bbb", "automargin": True}
MODES = ("lines", "steps", "markers", "lines+markers", "bars", "ticks", "labels")


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Return a plain layout with axis titles ``x`` and ``y``."""
    return {
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "xaxis": {**AXIS, "title": {"text": x}},
        "yaxis": {**AXIS, "title": {"text": y}},
        "hovermode": "closest",
        **more,
    }


def figure(plot: dict[str, Any]) -> Figure:
    """Return the Plotly figure of a plot given as data (see the module's docstring)."""
    count = len(plot["series"])
    told = all(s.get("mode") in ("ticks", "labels") for s in plot["series"])  # names stand beside the marks already
    height, legend = plot.get("height", 420), {"orientation": "h", "y": -0.2}
    style = layout(plot["x"], plot["y"], height=height, showlegend=count > 1 and not told, legend=legend)
    for axis, key in (("xaxis", "log_x"), ("yaxis", "log_y")):
        if plot.get(key):
            style[axis] |= {"type": "log", "exponentformat": "power", **_decades(plot["series"], axis[0])}
    if told and plot["series"][0]["mode"] == "ticks":
        style["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    return {"data": [_trace(s, i, count) for i, s in enumerate(plot["series"])], "layout": style}


def _decades(series: list[dict[str, Any]], axis: str) -> dict[str, Any]:
    """Return ticks at whole powers of ten, at most a dozen, for values that span two or more; else Plotly's own."""
    values = [v for s in series for v in s[axis] if isinstance(v, int | float) and v > 0]
    span = math.log10(max(values) / min(values)) if values else 0.0
    return {"dtick": math.ceil(span / 12)} if span >= 2 else {}


def _trace(series: dict[str, Any], place: int, count: int) -> dict[str, Any]:
    colour, mode = COLOURS[place % len(COLOURS)], series.get("mode", "lines")
    trace: dict[str, Any] = {"name": series["name"], "x": series["x"], "y": series["y"]}
    if mode == "bars":
        return {**trace, "type": "bar", "marker": {"color": colour}}
    if mode == "labels":
        text = series.get("text") or [series["name"]] * len(series["x"])
        beside = ("top center", "bottom center")[place % 2]
        return {**trace, "type": "scatter", "mode": "markers+text", "text": text, "textposition": beside,
                "textfont": LABEL, "marker": {"color": colour, "size": 9}}  # fmt: skip
    if mode == "ticks":
        return {**trace, "type": "scatter", "mode": "markers",
                "marker": {"color": colour, "symbol": "line-ns-open", "size": 20, "line": {"width": 1.5}}}  # fmt: skip
    dash = DASHES[2 * place // max(count, 2)] if count > 6 else "solid"
    line = {"color": colour, "dash": dash, "width": 2, "shape": "hv" if mode == "steps" else "linear"}
    hover = {"text": series["text"]} if "text" in series else {}
    return {**trace, **hover, "type": "scatter", "mode": "lines" if mode == "steps" else mode,
            "line": line, "marker": {"color": colour, "size": 6}}  # fmt: skip
