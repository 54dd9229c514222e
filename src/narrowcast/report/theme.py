"""How every plot of ours looks, and how a plot that is given as data becomes a Plotly figure.

A plot is plain data, so that result files can hold it:

    {"title", "x", "y", "log_x", "log_y", "series": [{"name", "x": [...], "y": [...], "mode"}]}

``mode`` is ``lines``, ``markers``, ``lines+markers``, ``bars`` or ``labels`` (markers with the name beside each).
"""

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
MODES = ("lines", "markers", "lines+markers", "bars", "labels")


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
    style = layout(plot["x"], plot["y"], height=420, showlegend=count > 1, legend={"orientation": "h", "y": -0.2})
    for axis, key in (("xaxis", "log_x"), ("yaxis", "log_y")):
        if plot.get(key):
            style[axis] |= {"type": "log", "exponentformat": "power"}
    return {"data": [_trace(s, i, count) for i, s in enumerate(plot["series"])], "layout": style}


def _trace(series: dict[str, Any], place: int, count: int) -> dict[str, Any]:
    colour, mode = COLOURS[place % len(COLOURS)], series.get("mode", "lines")
    trace: dict[str, Any] = {"name": series["name"], "x": series["x"], "y": series["y"]}
    if mode == "bars":
        return {**trace, "type": "bar", "marker": {"color": colour}}
    if mode == "labels":
        text = series.get("text") or [series["name"]] * len(series["x"])
        return {**trace, "type": "scatter", "mode": "markers+text", "text": text, "textposition": "top center",
                "textfont": LABEL, "marker": {"color": colour, "size": 9}}  # fmt: skip
    dash = DASHES[2 * place // max(count, 2)] if count > 6 else "solid"
    return {**trace, "type": "scatter", "mode": mode, "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"color": colour, "size": 6}}  # fmt: skip
