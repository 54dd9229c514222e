"""Tables of README.md from committed results of quantized models and of kernels."""

import math
from collections.abc import Callable
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


PARTS = ("gemm", "attention", "cast", "norm and gate", "elementwise", "gaps")


ATTENTION = {"flash4": "FlashAttention-4", "cudnn": "cuDNN", "flash": "FlashAttention-2"}


def step_table(report: dict[str, Any]) -> str:
    """Return a training step's time, memory and where the time goes, under each recipe and each of the peer's."""
    rows = [("", "ms", "over bf16", "memory, GiB", "bf16's over it", *(f"{part}, ms" for part in PARTS))]
    for name, row in report["variants"].items():
        shown = name if name.startswith("torchao") or name == "bf16" else f"`{name}`"
        rows.append(
            (shown, f"{row['ms']:.1f}", f"{row['over_bf16']:.2f}", f"{row['peak_gib']:.2f}",
             f"{row['memory_over_bf16']:.2f}", *(f"{row['shares_ms'].get(part, 0.0):.1f}" for part in PARTS))
        )  # fmt: skip
    ran, sizes = report["machine"], report["sizes"]
    runs = report.get("attention")  # files older than the choice have cuDNN's
    attention = f"attention by {ATTENTION[runs['kind'] if runs else 'cudnn']} in all"
    any_joined = any("+joined" in name for name in report["variants"])
    joined = "`+joined` has norms in one with what they feed. " if any_joined else ""
    note = (
        f"{sizes['layers']} layers of Llama-8B ({sizes['width']} wide, {sizes['gated']} gated), {sizes['batch']} x {sizes['context']} "
        f"tokens, forward and backward, {attention}, compiled, each in a CUDA graph, interleaved, medians of {report['rounds']} rounds: {ran['gpu']}, torch "
        f"{ran['torch']}, {ran['date']}. `@hopper-fp8` and torchao's row scales sum without promotion. "
        f"{joined}Casts that torchao leaves to the compiler count under norm and elementwise. All figures in "
        "`bench/results/train-cuda.json`, written by `./dev bench train_gpu`."
    )
    return f"{markdown(rows)}\n\n{note}"


def attention_table(report: dict[str, Any]) -> str:
    """Return milliseconds of one layer's attention, forward and backward, by each kernel that ran."""
    rows = [("forward and backward, ms", "batch x heads/keys x tokens x size", *ATTENTION.values())]
    for row in report["rows"]:
        shape = f"{row['batch']} x {row['heads']}/{row['keys']} x {row['tokens']} x {row['size']}"
        times = (row["kernels"].get(name, {}).get("ms") for name in ATTENTION)
        what = f"{row['what']}, bits repeat" if row["repeatable"] else row["what"]
        rows.append((what, shape, *("" if ms is None else f"{ms:.2f}" for ms in times)))
    ran = report["machine"]
    note = (
        f"bfloat16, in one run: {ran['gpu']}, torch {ran['torch']}, {ran['date']}; cuDNN's backward pass does not repeat its bits. All "
        "figures in `bench/results/attention-cuda.json`, written by `./dev bench attention_gpu`."
    )
    return f"{markdown(rows)}\n\n{note}"


def gemm_table(report: dict[str, Any]) -> str:
    """Return TFLOP/s of products by scales and shape: the library's and ours, and those of MXFP4 with what comes first."""
    shapes = report["tflops"]
    kinds = list(next(iter(shapes.values())))

    def table(names: list[str], short: Callable[[str], str]) -> str:
        rows = [("M x N x K", *map(short, names))]
        rows += [(shape, *(f"{found[kind]:.0f}" for kind in names)) for shape, found in shapes.items()]
        return markdown(rows)

    tables = [table([k for k in kinds if "mxfp4" not in k], str)]
    micro = [k for k in kinds if k.startswith("mxfp4") and not k.endswith("called")]
    if micro:
        tables += [
            "MXFP4, exactly on FP8 units or in bfloat16, each alone and with the passes that make its operands ready:",
            table(micro, lambda name: name.removeprefix("mxfp4 ")),
        ]
    ran = report["machine"]
    note = (
        f"TFLOP/s, in one run: {ran['gpu']}, torch {ran['torch']}, {ran['date']}; all figures in "
        "`bench/results/gemm-cuda.json`, written by `./dev bench gemm`."
    )
    return "\n\n".join([*tables, note])


PASSES = (
    "quantize",
    "rms_norm",
    "add_rms_norm",
    "rms_norm_backward",
    "swiglu",
    "swiglu_backward",
    "gelu",
    "gelu_backward",
)


def passes_table(report: dict[str, Any]) -> str:
    """Return the share of a copy's speed at which both orientations of codes are made, alone and fused."""
    measured = report["speed"][0]
    found, ran = measured["variants"], report["versions"]
    casts = [name.removeprefix("gelu: ") for name in found if name.startswith("gelu: ")]
    rows = [("both orientations of the codes of", *(f"`{cast.split(' | ')[0]}`" for cast in casts))]
    rows += [
        (work.replace("_", " "), *(f"{found[f'{work}: {cast}']['share']:.0%}" for cast in casts)) for work in PASSES
    ]
    note = (
        f"Share of the speed of a device copy that moves the same bytes (maxima of rows are a pass before, and count), {measured['shape'][0]} x "
        f"{measured['shape'][1]} {measured['dtype']}, in one run: {ran['gpu']}, torch {ran['torch']}, {ran['date']}. All bits are the "
        f"emulation's: {report['check']['cases']} cases. All figures in `bench/results/passes-cuda.json`, written by `./dev bench passes_gpu`."
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


def pretrain_table(report: dict[str, Any]) -> str:
    """Return real training on a GPU: losses beside the noise, and the clock."""
    clock, noise = report["clock"], report["noise"]
    base = next(row["step_seconds"] for row in report["rows"] if row["recipe"] == report["baseline"])
    rows = [
        ("recipe", "validation loss", f"gap (noise ±{noise['half_width']:.4f})", "gap to the same seed", "verdict",
         "ms per update", "times faster", f"seconds to loss {clock['loss']:.3f}", "times sooner"),
    ]  # fmt: skip
    for row in report["rows"]:
        name = row["recipe"]
        shown = name if name == report["baseline"] else f"`{name}`"
        if row["diverged"]:
            rows.append((shown, "", "", "", "diverged", "", "", "", ""))
            continue
        rows.append(
            (shown, f"{row['val_loss']:.4f}", f"{row['gap']:+.4f}", f"{row['paired_gap']:+.4f}", row["verdict"],
             f"{1e3 * row['step_seconds']:.1f}", f"{base / row['step_seconds']:.2f}", f"{clock['seconds'][name]:.1f}",
             f"{clock['times_sooner'][name]:.2f}")
        )  # fmt: skip
    ran, training, corpus = report["versions"], report["training"], report["corpus"]
    note = (
        f"A Llama of {report['model']['parameters']:,} parameters, {report['model']['hidden']} wide, {training['steps']} updates of "
        f"{training['tokens_per_step']:,} tokens from {corpus['bytes'] / 1e6:.0f} MB of Python, compiled: {ran['gpu']}, torch {ran['torch']}, {ran['date']}. "
        f"Same weights and batches; the baseline (torch's autocast, float32 weights) under {len(noise['losses'])} seeds. The clock counts updates at their "
        "median time; compiling and validating are left out. Curves and all figures in `bench/results/pretrain-cuda.json`, written by "
        "`./dev bench pretrain_gpu`; `narrowcast report FOLDER` makes a page of a copy called FOLDER/report.json. "
        f"{report.get('note', '')}"
    )
    return f"{markdown(rows)}\n\n{note}"
