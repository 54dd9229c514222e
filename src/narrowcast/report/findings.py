"""What a comparison found, in sentences."""

from typing import Any


def summary(report: dict[str, Any]) -> list[str]:
    """Return the findings as plain sentences, the most important one first."""
    rows = [r for r in report["rows"] if r["verdict"] != "baseline"]
    width, base = report["noise"]["half_width"], report["baseline"]
    same = [r for r in rows if r["verdict"] in ("not distinguishable", "better")]
    worse = sorted((r for r in rows if r["verdict"] == "worse"), key=lambda r: r["gap"])
    sentences = []
    if same:
        least = min(same, key=lambda r: (r["bits_operands"], r["gap"]))
        sentences.append(
            f"{least['recipe']} is the narrowest recipe that trains as well as {base}: "
            f"{least['bits_operands']:.2f} bits per operand element, gap {least['gap']:+.4f} "
            f"(noise floor ±{width:.4f})."
        )
        if len(same) > 1:
            names = ", ".join(r["recipe"] for r in same)
            sentences.append(f"Not worse than {base} beyond the noise: {names}.")
    elif rows:
        sentences.append(f"No recipe trains as well as {base} here (noise floor ±{width:.4f}).")
    if worse:
        names = ", ".join(f"{r['recipe']} ({r['gap']:+.4f})" for r in worse)
        sentences.append(f"Worse than {base} by more than the noise: {names}.")
    sentences += [r["diverged"][:1].upper() + r["diverged"][1:] + "." for r in rows if r["verdict"] == "diverged"]
    return sentences or [f"Only the baseline {base} ran."]
