"""README's table of how other libraries differ, from the committed result of ``./dev bench conformance``."""

import re
from typing import Any

BLOCKS = {
    "in a block of zeros": "blocks of zeros",
    "scale of a block of zeros": "blocks of zeros",
    "in a block that is not finite": "blocks that are not finite",
    "scale of a block that is not finite": "blocks that are not finite",
    "in a block with a subnormal scale": "subnormal scales",
    "subnormal scale": "subnormal scales",
    "beyond the maximum": "overflow",
}
EDGES = {"NaN", "infinity", "zero", "negative", *BLOCKS.values()}


def conformance_table(report: dict[str, Any]) -> str:
    """Return one line for each way that a library differs: on what, the first bits, and the rules under which it agrees."""
    calls: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for row in report["results"] if "refused" not in row):
        calls.setdefault((row["peer"], row["call"].removesuffix(", decoding")), []).append(row)
    lines: dict[tuple[str, str, str], list[tuple[str, list[dict[str, Any]]]]] = {}  # calls that differ alike
    for (peer, call), rows in calls.items():
        wrong = [row for row in rows if row["differ"]]
        lines.setdefault((peer, classes_of(wrong), rules_of(wrong)), []).append((call, rows))
    head = ("library, as called", "asked for", "differs on", "first bits that differ", "agrees under")
    table: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for (peer, classes, rules), found in lines.items():
        rows = [row for _, rows in found for row in rows]
        name = f"{peer} {report['peers'][peer].partition('+')[0]}: {', '.join(f'`{call}`' for call, _ in found)}"
        table.append((name, asked_for(rows), classes, first_bits(rows), rules))
    ran = report["versions"]
    note = (
        "Every encoder and decoder counts once for each format and rounding; in brackets, how many of those that differ follow a "
        f"rule. All figures: `bench/results/conformance.json`, written by `./dev bench conformance`, {ran['date']}."
    )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in table), "", note])


def asked_for(rows: list[dict[str, Any]]) -> str:
    """Return the formats and roundings that ``rows`` were asked for, and how many of the rows agree."""
    asked = [re.split(r", |/(?=[a-z-]+$)", row["asked"]) for row in rows]
    names, modes = ([*dict.fromkeys(part)] for part in zip(*asked, strict=True))
    text = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    text += f" in {len(modes)} roundings" if len(modes) > 1 else f", {modes[0]}" if modes[0] != "nearest-even" else ""
    right = sum(row["differ"] == 0 for row in rows)
    return text if right in (0, len(rows)) else f"{text}; {right} of {len(rows)} agree"


def classes_of(wrong: list[dict[str, Any]]) -> str:
    """Return the classes of input on which some of ``wrong`` differ, ordinary ones first."""
    names = list(dict.fromkeys(BLOCKS.get(name, name) for row in wrong for name in row["classes"]))
    ordinary = [name for name in names if name not in EDGES]
    shown = ordinary if len(ordinary) < 3 else ["ordinary values"]
    return ", ".join([*shown, *(name for name in names if name in EDGES)]) if names else "nothing"


def first_bits(rows: list[dict[str, Any]]) -> str:
    """Return the first difference of ``rows`` as bits."""
    wrong = [row for row in rows if row["differ"]]
    if not wrong:
        return ""
    first, asked = wrong[0]["first"], wrong[0]["asked"].removesuffix("/nearest-even").removesuffix(", nearest-even")
    return f"`{asked}` of {first['input']}: {first['found']}, not {first['expected']}"


def rules_of(wrong: list[dict[str, Any]]) -> str:
    """Return the rules under which ``wrong`` would agree, the most frequent first."""
    counts: dict[str, int] = {}
    for row in wrong:
        for rule in row["agrees_under"]:
            counts[rule["name"]] = counts.get(rule["name"], 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    texts = [name if n == len(wrong) else f"{name} ({n})" for name, n in ordered]
    rest = sum(row["unexplained"] for row in wrong)
    return "; ".join([*texts, *([f"{rest} answers follow no rule tried"] if rest else [])])
