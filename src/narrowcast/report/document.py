"""A plain page of sections, each with text, tables and plots: one HTML file that opens offline.

Tables and plots are plain data, so that result files can hold them: a table is ``{"title", "columns", "rows"}`` whose
cells are strings or numbers, a plot is what `theme.figure` takes.
"""

import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from narrowcast.report.tables import cell, table
from narrowcast.report.theme import figure


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        title: its heading.
        text: paragraphs, plain text.
        tables, plots: plain data, shown in this order after the text.
        html: finished HTML (already escaped) that stands before them.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[dict[str, Any], ...] = ()
    plots: tuple[dict[str, Any], ...] = ()
    html: str = ""


def render(kicker: str, headline: str, intro: tuple[str, ...], sections: tuple[Section, ...]) -> str:
    """Return the page: it needs no network and no other file. All text is escaped."""
    from plotly.offline import get_plotlyjs

    here = files("narrowcast.report")
    figures: dict[str, Any] = {}
    body = "".join(_section(section, figures) for section in sections)
    return Template((here / "document.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{kicker}: {headline}"),
        style=(here / "style.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        kicker=escape(kicker),
        headline=escape(headline),
        intro="".join(f"<p>{escape(sentence)}</p>" for sentence in intro),
        sections=body,
        figures=embedded(figures),
    )


def embedded(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def number(value: object) -> str:
    """Return a cell's text: floats in at most five digits, large integers with commas, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def data_table(data: dict[str, Any]) -> str:
    """Return a table given as data, as HTML; numbers stand at the right."""
    rows = [
        [cell(number(value), css="n" if isinstance(value, int | float) else "") for value in row]
        for row in data["rows"]
    ]
    title = f"<h3>{escape(data['title'])}</h3>" if data.get("title") else ""
    return f"<div>{title}{table([str(column) for column in data['columns']], rows, 'data')}</div>"


def _tables(section: Section) -> str:
    return f'<div class="tables">{"".join(map(data_table, section.tables))}</div>' if section.tables else ""


def _section(section: Section, figures: dict[str, Any]) -> str:
    text = "".join(f'<p class="dim">{escape(paragraph)}</p>' for paragraph in section.text)
    parts = [f"<section><h2>{escape(section.title)}</h2>", text, section.html, _tables(section)]
    plots = []
    for plot in section.plots:
        name = f"plot{len(figures)}"
        figures[name] = figure(plot)
        wide = ' class="wide"' if plot.get("wide") else ""
        plots.append(f'<div{wide}><h3>{escape(plot["title"])}</h3><div id="{name}" class="plot"></div></div>')
    return "".join([*parts, f'<div class="plots">{"".join(plots)}</div>' if plots else "", "</section>"])
