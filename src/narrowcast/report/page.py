"""One self-contained HTML file from one report."""

from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from narrowcast.io import write_atomic
from narrowcast.report.document import embedded
from narrowcast.report.figures import (
    clock_figure,
    colours,
    dashes,
    drift_figure,
    gap_figure,
    heat_maps,
    loss_figure,
    native,
)
from narrowcast.report.findings import summary
from narrowcast.report.tables import conversion_tables, facts_table, gpu_table, main_table

_EMULATED = (
    "this emulation holds float32, and its rounding makes a step here longer, not shorter. H100 times are predictions"
)
_NATIVE = (
    "recipes that ran natively (see the layers' table) hold and multiply narrow codes, the others emulate them in "
    "float32, which makes their steps longer, not shorter. H100 8B times are predictions"
)
_CLOCK = '<h3>Validation loss by the clock</h3><div id="clock" class="plot"></div>'


def render(report: dict[str, Any]) -> str:
    """Return the page: it needs no network and no other file."""
    from plotly.offline import get_plotlyjs

    here = files("narrowcast.report")
    findings = summary(report)
    gpu, fast = report["gpu"], native(report)
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        plotly=get_plotlyjs(),
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        headline=escape(findings[0]),
        findings="".join(f"<p>{escape(sentence)}</p>" for sentence in findings[1:]),
        baseline=escape(report["baseline"]),
        noise=escape(report["noise"]["explanation"]),
        model=escape(f"{report['model']['name']}, {report['model']['parameters']:,} parameters"),
        corpus=escape(f"{report['corpus']['name']} ({report['corpus']['train_tokens']:,} tokens)"),
        steps=report["training"]["steps"],
        tokens=f"{report['training']['steps'] * report['training']['tokens_per_step']:,}",
        gpu=escape(gpu["name"]),
        reference=escape(gpu.get("reference", "a Llama-8B stack")),
        ran=_NATIVE if fast else _EMULATED,
        clock=_CLOCK if fast else "",
        main=main_table(report),
        conversions=conversion_tables(report),
        facts=facts_table(report),
        constants=gpu_table(report),
        figures=embedded(
            {
                "gap": gap_figure(report),
                "drift": drift_figure(report),
                "val": loss_figure(report, "val"),
                "train": loss_figure(report, "train"),
                **({"clock": clock_figure(report)} if fast else {}),
            }
        ),
        keys=_keys(report),
        maps=embedded(heat_maps(report)),
    )


def _keys(report: dict[str, Any]) -> str:
    """Return one button per recipe: colour, dash and name; pointing at it lights its lines up in every plot."""
    lines = dashes(report)
    return "".join(
        f'<button type="button" data-recipe="{escape(name)}" aria-pressed="false">'
        f'<i style="border-top: 3px {"solid" if lines[name] == "solid" else "dashed"} {colour}"></i>'
        f"{escape(name)}</button>"
        for name, colour in colours(report).items()
    )


def write(report: dict[str, Any], folder: Path) -> Path:
    """Write ``folder/report.html`` atomically and return its path."""
    path = folder / "report.html"
    write_atomic(path, render(report).encode())
    return path
