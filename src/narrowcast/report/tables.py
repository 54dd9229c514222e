"""The tables of the page, as HTML. Everything that comes from a file or a name is escaped."""

from html import escape
from typing import Any

_WORDS = {"not distinguishable": "same", "worse": "worse", "better": "better", "diverged": "worse", "baseline": "base"}


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
    head = (
        "recipe,validation loss,gap,verdict,bits per operand,bits per weight,model MB,optim. MB,"
        "kept for backward MB,step here ms,H100 ms (this model),H100 ms (8B stack)"
    )
    return table(head.split(","), [_main_row(row, report["noise"]["half_width"]) for row in report["rows"]], "main")


def _main_row(row: dict[str, Any], width: float) -> list[str]:
    name = (
        f"<td><b>{escape(row['recipe'])}</b><div class=what>{escape(row['summary'])}</div>"
        f"<div class=paper>{escape(row['paper'])}</div></td>"
    )
    verdict = f'<td><span class="verdict {_WORDS[row["verdict"]]}">{escape(row["verdict"])}</span></td>'
    if row["diverged"]:
        return [name, f"<td colspan=2>{escape(row['diverged'])}</td>", verdict, "<td colspan=8></td>"]
    gap = f"±{width:.4f}" if row["verdict"] == "baseline" else f"{row['gap']:+.4f}"
    skipped = f" ({row['skipped_steps']} skipped)" if row["skipped_steps"] else ""
    numbers = [
        f"{row['bits_operands']:.2f}",
        f"{row['bits_weights']:.2f}",
        *(f"{row[key] / 1e6:.2f}" for key in ("model_bytes", "optimizer_bytes", "activation_bytes")),
        f"{row['step_seconds'] * 1e3:.0f}{skipped}",
        f"{row['h100_step_seconds'] * 1e3:.2f}",
    ]
    big = f'<td class=n title="{escape(row["h100_note"])}">{row["h100_8b_step_seconds"] * 1e3:.1f}</td>'
    return [name, cell(f"{row['val_loss']:.4f}", css="n"), cell(gap, css="n"), verdict,
            *(cell(n, css="n") for n in numbers), big]  # fmt: skip


def conversion_tables(report: dict[str, Any]) -> str:
    """What became of every matmul site, one folded table a recipe."""
    parts = []
    for row in report["rows"]:
        if row["diverged"] or not row["conversion"]:
            continue
        sites = row["conversion"]
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
        title = f"{escape(row['recipe'])}: {narrow} of {len(sites)} sites narrowed"
        parts.append(f"<details><summary>{title}</summary>{table(head, lines)}</details>")
    return "".join(parts)


def facts_table(report: dict[str, Any]) -> str:
    """Corpus, model, training, versions, the exact command."""
    rows = [[cell("command", "th"), cell(report["command"] or "(called from Python)", css="code")]]
    for group in ("corpus", "model", "training", "versions"):
        text = ", ".join(f"{k} {v}" for k, v in report[group].items() if v is not None)
        rows.append([cell(group, "th"), cell(text)])
    rows.append([cell("noise floor", "th"), cell(report["noise"]["explanation"])])
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="box"><table class="facts"><tbody>{body}</tbody></table></div>'


def gpu_table(report: dict[str, Any]) -> str:
    """The constants of the roofline, with their sources."""
    lines = [
        [cell(c["name"]), cell(f"{c['value']:.4g}", css="n"), cell(c["unit"]), cell(c["source"])]
        for c in report["gpu"]["constants"]
    ]
    return table(["constant", "value", "unit", "source"], lines)
