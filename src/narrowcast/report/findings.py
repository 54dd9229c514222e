"""What a comparison found, in sentences. "Not distinguishable" never becomes "as good as"."""

from typing import Any


def summary(report: dict[str, Any]) -> list[str]:
    """Return the findings as plain sentences, the most important one first."""
    rows = [r for r in report["rows"] if r["verdict"] != "baseline"]
    width, base = report["noise"]["half_width"], report["baseline"]
    held = {verdict: [r for r in rows if r["verdict"] == verdict] for verdict in ("not distinguishable", "better")}
    worse = sorted((r for r in rows if r["verdict"] == "worse"), key=lambda r: r["gap"])
    same = [r for found in held.values() for r in found]
    sentences = []
    if same:
        least = min(same, key=lambda r: (r["bits_operands"], r["gap"]))
        sentences.append(
            f"{least['recipe']} is the narrowest recipe that {_held(least)} {base} here: "
            f"{least['bits_operands']:.2f} bits per operand element, gap {least['gap']:+.4f} "
            f"(noise floor ±{width:.4f})."
        )
    elif rows:
        sentences.append(f"Every other recipe is worse than {base} here (noise floor ±{width:.4f}).")
    if held["better"]:
        sentences.append(f"Better than {base} by more than the noise: {_gaps(held['better'])}.")
    if worse:
        sentences.append(f"Worse than {base} by more than the noise: {_gaps(worse)}.")
    if held["not distinguishable"]:
        names = ", ".join(r["recipe"] for r in held["not distinguishable"])
        sentences.append(f"Not distinguishable from {base} under another seed: {names}.")
    sentences += [r["diverged"][:1].upper() + r["diverged"][1:] + "." for r in rows if r["verdict"] == "diverged"]
    return sentences or [f"Only the baseline {base} ran."]


def _held(row: dict[str, Any]) -> str:
    return "beats" if row["verdict"] == "better" else "cannot be told from"


def _gaps(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{r['recipe']} ({r['gap']:+.4f})" for r in rows)
