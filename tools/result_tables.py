"""Tables of README.md from committed results of quantized models and of kernels."""

import math
from typing import Any


def markdown(rows: list[tuple[str, ...]], left: int = 1) -> str:
    """Return rows, the heading first, as a Markdown table whose first ``left`` columns stand at the left."""
    rule = ("---",) * left + ("---:",) * (len(rows[0]) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))


def quantized_table(report: dict[str, Any]) -> str:
    """Return every model under several post-training recipes."""
    parts = "\n\n".join(map(_quantized, report["models"]))
    return f"{parts}\n\nAll figures in `bench/results/quantized.json`, written by `./dev bench quantized`."


def _quantized(found: dict[str, Any]) -> str:
    """Return one model's size, predicted speed and loss, recipe by recipe."""
    size, start = found["bytes"], found["loss"]
    rows = [
        ("recipe", "times smaller", "predicted decode, times faster", "perplexity", "KL divergence, nats", "same likeliest token", "beaten by another"),
        ("(original, float32)", "1.0", "", f"{math.exp(start):.3f}", "0", "100 %", ""),
    ]  # fmt: skip
    for row in found["rows"]:
        rise = 100 * math.expm1(row["loss"] - start)
        rows.append(
            (f"`{row['recipe']}`", f"{size / row['bytes']:.1f}", f"{found['decode'] / row['decode']:.2f}",
             f"{math.exp(row['loss']):.3f} ({rise:+.1f} %)", f"{row['divergence']:.4f}", f"{100 * row['agreement']:.1f} %",
             "" if row["best"] else "yes")
        )  # fmt: skip
    ran = found["versions"]
    note = (
        f"{found['model']['name']}, {found['model']['parameters']:,} parameters, judged on {found['tokens']:,} tokens of {found['source']}; "
        f"decode is a roofline's for {found['gpu']} against 16 bits, and on so small a model nothing but its launches. torch {ran['torch']}, "
        f"{ran['cpu']}, {ran['date']}."
    )
    return f"{markdown(rows)}\n\n{note}"


def optimizer_table(report: dict[str, Any]) -> str:
    """Return the time of an optimizer's step and the bytes of its states, beside torch's fused AdamW."""
    ran, bits = report["versions"], report["check"]
    title, found = next(iter(report["speed"].items()))
    rows = [("", "ms", "times faster", "bytes kept a parameter", "bytes moved", "share of a copy")]
    for name, row in found["rows"].items():
        states, comma, rest = name.partition(",")
        shown = f"`{states}`{comma}{rest}" if states in bits["optimizers"] else name
        rows.append(
            (shown, f"{row['ms']:.2f}", f"{row['times_faster']:.2f}", f"{row['bytes_kept']:.2f}",
             f"{row['bytes_moved']:.1f}", f"{row['share_of_copy']:.0%}")
        )  # fmt: skip
    note = (
        f"One step of {title} ({found['parameters']:,} parameters), in one run: {ran['gpu']}, torch {ran['torch']}, "
        f"Triton {ran['triton']}, {ran['date']}. Kept: master weights and moments. Every part of the state equals the "
        f"emulation's ({len(bits['differ'])} differences). All figures in `bench/results/optimizer-cuda.json`, written by "
        "`./dev bench optimizer_gpu`."
    )
    return f"{markdown(rows)}\n\n{note}"


def ptq_table(report: dict[str, Any]) -> str:
    """Return what was expected of post-training methods on real models, and what was found."""
    rows = [("expected", "found", "")]
    rows += [(row["claim"], f"{row['found']:.3g}", "yes" if row["holds"] else "**no**") for row in report["claims"]]
    ran = report["language"]["versions"]
    note = (
        f"stories260K under five draws of calibration text, ResNet20 on {report['vision']['images']} CIFAR-10 test images; torch {ran['torch']}, "
        f"{ran['cpu']}, {ran['date']}; all figures, and a sentence encoder's, in `bench/results/ptq.json`, written by `./dev bench ptq`."
    )
    return f"{markdown(rows)}\n\n{note}"


def gptq_table(report: dict[str, Any]) -> str:
    """Return the time of GPTQ on one large layer, beside the peer's."""
    rows = [("GPTQ of one layer", "cast", "seconds", "error of the outputs")]
    rows += [
        (row["who"], f"`{row['cast']}`", f"{row['seconds']:.2f}", f"{row['error']:.3g}") for row in report["times"]
    ]
    ran, (out, width) = report["versions"], report["shape"]
    note = (
        f"{out} x {width} float32 weights in one run: {ran['gpu']}, torch {ran['torch']}, {ran['peer']}, {report['date']}; all figures in "
        "`bench/results/gptq-cuda.json`, written by `./dev bench gptq_gpu`."
    )
    return f"{markdown(rows, left=2)}\n\n{note}"
