"""The tables of the page, as HTML. Everything that comes from a file or a name is escaped."""

from html import escape
from typing import Any

_WORDS = {"not distinguishable": "same", "worse": "worse", "better": "better", "diverged": "worse", "baseline": "base"}
_HEAD = (
    "recipe,validation loss,gap,verdict,bits per operand,bits per weight,model MB,optim. MB,kept for backward MB,"
    "measured here ms/step,predicted H100 ms this model,predicted H100 ms 8B stack"
)


def cell(value: object, kind: str = "td", css: str = "") -> str:
    """Return one escaped cell."""
    return f"<{kind}{f' class={css}' if css else ''}>{escape(str(value))}</{kind}>"


def table(head: list[str], rows: list[list[str]], css: str = "") -> str:
    """Return a table in a box that scrolls; ``rows`` hold finished cells."""
    top = "".join(cell(h, "th") for h in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="box"><table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def main_table(report: dict[str, Any]) -> str:
    """The side by side: one line a recipe."""
    return table(_HEAD.split(","), [_main_row(row, report["noise"]["half_width"]) for row in report["rows"]], "main")


def _main_row(row: dict[str, Any], width: float) -> list[str]:
    why = f"<div class=why>{escape(row['diverged'])}</div>" if row["diverged"] else ""
    name = (
        f"<td><b>{escape(row['recipe'])}</b><div class=what>{escape(row['summary'])}</div>"
        f"<div class=paper>{escape(row['paper'])}</div>{why}</td>"
    )
    verdict = f'<td><span class="verdict {_WORDS[row["verdict"]]}">{escape(row["verdict"])}</span></td>'
    skipped = f" ({row['skipped_steps']} skipped)" if row["skipped_steps"] else ""
    numbers = [
        f"{row['bits_operands']:.2f}",
        f"{row['bits_weights']:.2f}",
        *(f"{row[key] / 1e6:.2f}" for key in ("model_bytes", "optimizer_bytes", "activation_bytes")),
        f"{_number(row['step_seconds'], '.0f', 1e3)}{skipped}",
        f"{row['h100_step_seconds'] * 1e3:.2f}",
        f"{row['h100_8b_step_seconds'] * 1e3:.1f}",
    ]
    loss = cell(_number(row["val_loss"], ".4f"), css="n")
    return [name, loss, _gap(row, width), verdict, *(cell(n, css="n") for n in numbers)]


def _gap(row: dict[str, Any], width: float) -> str:
    """Return the gap with the noise floor beneath it."""
    return f'<td class="n">{_number(row["gap"], "+.4f")}<div class="paper">±{width:.4f}</div></td>'


def _number(value: float | None, spec: str, factor: float = 1.0) -> str:
    return "–" if value is None else format(value * factor, spec)


def conversion_tables(report: dict[str, Any]) -> str:
    """What became of every matmul site, one folded table a recipe."""
    parts = []
    for row in report["rows"]:
        sites = row["conversion"]
        if row["diverged"] or not sites:
            continue
        narrow = sum(s["became"] == "narrow" for s in sites)
        lines = [
            [
                cell(s["name"], css="code"),
                cell(s["kind"]),
                cell(" x ".join(map(str, s["shape"]))),
                cell(s["became"]),
                cell(s["backend"]),
                cell(s["kernel"]),
                cell(s["why"]),
            ]
            for s in sites
        ]
        head = ["site", "kind", "shape", "became", "backend", "kernel", "why"]
        title = f"<b>{escape(row['recipe'])}</b>: {narrow} of {len(sites)} sites narrowed"
        parts.append(f"<details><summary>{title}</summary>{table(head, lines)}</details>")
    return "".join(parts)


def facts_table(report: dict[str, Any]) -> str:
    """The exact command, corpus, model, training, versions, the noise floor."""
    rows = [[cell("command", "th"), cell(report["command"] or "(called from Python)", css="code")]]
    for group in ("corpus", "model", "training", "versions"):
        facts = (f"<span class=fact><i>{escape(k.replace('_', ' '))}</i> {escape(_fact(v))}</span>"
                 for k, v in report[group].items() if v is not None)  # fmt: skip
        rows.append([cell(group, "th"), f"<td>{' '.join(facts)}</td>"])
    rows.append([cell("noise floor", "th"), cell(f"{report['noise']['explanation']}.")])
    losses = ", ".join(f"{loss:.4f}" for loss in report["noise"]["losses"])
    rows.append([cell("baseline losses", "th"), cell(losses)])
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="box"><table class="facts"><tbody>{body}</tbody></table></div>'


def _fact(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def gpu_table(report: dict[str, Any]) -> str:
    """The constants of the roofline with their sources, and what it lets each recipe run on."""
    lines = [
        [cell(c["name"]), cell(f"{c['value']:.4g}", css="n"), cell(c["unit"]), cell(c["source"])]
        for c in report["gpu"]["constants"]
    ]
    ran = [[cell(r["recipe"]), cell(r["h100_note"])] for r in report["rows"]]
    return table(["constant", "value", "unit", "source"], lines, "gpu") + table(["recipe", "predicted with"], ran)
