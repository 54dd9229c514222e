"""``narrowcast quantize``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from narrowcast.cli.common import (
    JsonFlag,
    OverwriteFlag,
    ResumeFlag,
    SeedOption,
    ThreadsOption,
    console,
    emit,
    progress,
    use_threads,
)
from narrowcast.io.files import sized

_D_SAMPLES, _D_LENGTH, _D_HELD = 64, 512, 16


def quantize(
    model: Annotated[Path, typer.Argument(help="Hugging Face model folder (config.json and safetensors).")],
    recipe: Annotated[str, typer.Option(help="Post-training recipe, or a cast such as int4/1x64/fp32.")],
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the quantized model.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would become of it; reads no weights.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Calibration text, file or folder [the model writes its own].")
    ] = None,
    samples: Annotated[int, typer.Option(help="Windows of text to calibrate on.")] = _D_SAMPLES,
    length: Annotated[int, typer.Option(help="Tokens of a window, at most the model's reach.")] = _D_LENGTH,
    held: Annotated[int, typer.Option(help="Windows set apart to judge on.")] = _D_HELD,
    keep_wide: Annotated[
        list[str] | None, typer.Option("--keep-wide", help="Pattern of modules that stay wide; may be repeated.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="How the weights are stored: narrowcast or compressed-tensors.")
    ] = "narrowcast",
    dtype: Annotated[
        str | None, typer.Option(help="Of what stays wide: float32, bfloat16, float16 [as it is].")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU that kernels and speed are predicted for.")] = "h100",
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a trained model after training, and say what it lost.

    One block of the model is in memory at a time. Writes a model folder with report.html and report.json to --out;
    'narrowcast recipes --post-training' lists the recipes.

    Example: narrowcast quantize MODEL --recipe w4a16-gptq-g32 --data TEXT --out MODEL-int4
    """
    from narrowcast.analysis.serving import gpu as gpu_of
    from narrowcast.cli.common import dtype_of
    from narrowcast.errors import InputError
    from narrowcast.ptq.calibration import CalibrationConfig
    from narrowcast.ptq.folder import QuantizeConfig, layout_of

    use_threads(threads)
    calibration = CalibrationConfig(data, samples, length, held, seed)
    config = QuantizeConfig(
        model, recipe, calibration, None, (), tuple(keep_wide or ()), layout_of(layout), device, gpu_of(gpu),
        dtype_of(dtype) if dtype else None,
    )  # fmt: skip
    if plan:
        _plan(config, as_json)
        return
    if out is None:
        raise InputError("--out is missing: give a folder for the quantized model, or --plan to see what it would be")
    report = _run(config, out, resume=resume, overwrite=overwrite)
    emit(report, as_json, lambda: _show(report, out))


def _plan(config: Any, as_json: bool) -> None:
    from narrowcast.ptq.folder import plan_folder

    found = plan_folder(config)
    emit(found.to_json(), as_json, lambda: _show_plan(found))


def _run(config: Any, out: Path, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Quantize under one progress bar over the parts of the model."""
    from narrowcast.ptq.folder import quantize_folder
    from narrowcast.report.quantize import write_quantized

    with progress() as bar:
        task = bar.add_task("quantize", total=None, note="")

        def on_step(done: int, total: int, what: str) -> None:
            if bar.tasks[0].total != total:
                bar.reset(task, total=total)  # another kind of step: the time left begins anew
            bar.update(task, completed=done, note=what)

        command = shlex.join(["narrowcast", *sys.argv[1:]])
        return quantize_folder(
            config, out, resume=resume, overwrite=overwrite, on_step=on_step, on_report=write_quantized, command=command
        )


def _show(report: dict[str, Any], out: Path) -> None:
    """Print what came of it."""
    from narrowcast.report.quantize import advice, headline, remarks, worst_layers

    console.print(headline(report))
    found, memory = report["judgement"], report["memory"]
    if found:
        console.print(
            f"loss {found['before']:.4f} -> {found['after']:.4f} nats per token, KL {found['divergence']:.4f}, same "
            f"likeliest token {100 * found['agreement']:.1f} % ({found['tokens']:,} tokens set apart)"
        )
    worst = ", ".join(_loss(row) for row in worst_layers(report)[:3])
    console.print(f"hurt most: {worst}")
    console.print(
        f"memory: {sized(memory['weights_peak'])} of {sized(memory['model_bytes'])} of weights and "
        f"{sized(memory['activations_peak'])} of hidden states at once; process {sized(memory['process_peak'])}"
    )
    for note in (*report["plan"]["notes"], *remarks(report)):
        console.print(f"note: {note}")
    for sample in report["samples"][:1]:
        console.print(f"it wrote:  {sample['prompt']}|{sample['before']}")
        console.print(f"it writes: {sample['prompt']}|{sample['after']}")
    console.print(f"- {advice(report)}")
    console.print(f"model: {out}, report: {out / 'report.html'}, {report['seconds']:.1f} s")


def _loss(row: dict[str, Any]) -> str:
    name = row["name"].removesuffix(".weight").removeprefix("model.")
    if row["output_error"] is not None:
        return f"{name} (output error {row['output_error']:.2g})"
    return f"{name} ({row['sqnr_db']:.1f} dB)" if row["sqnr_db"] is not None else name


def cached_line(before: float, after: float) -> str:
    """Return what one token takes in the cache of keys and values, in words."""
    smaller = f" ({before / after:.1f}x smaller)" if after < before else ", wide as before"
    return f"keys and values: {before:,.0f} -> {after:,.0f} bytes a token cached{smaller}, all layers, scales counted"


def _show_plan(plan: Any) -> None:
    from narrowcast.ptq.plan import folded, short

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in (("parameter", "left"), ("shape", "right"), ("became", "left"), ("before", "right"),
                          ("after", "right"), ("runs as / why", "left")):  # fmt: skip
        shown.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in folded(plan).rows:
        became = short(row.cast) if row.became == "narrow" else "wide"
        notes = "; ".join(text for text in (row.kernel, row.why, row.group and f"shares with {row.group}") if text)
        shown.add_row(row.name, "x".join(map(str, row.shape)), became, sized(row.before), sized(row.after), notes)
    console.print(shown)
    console.print(
        f"{sized(plan.bytes_before)} -> {sized(plan.bytes_after)} "
        f"({plan.bytes_before / plan.bytes_after:.1f}x smaller), scales counted; in memory at a time: a block of "
        f"{sized(plan.block_bytes)} in float32, and its activations"
    )
    if plan.cached is not None:
        console.print(cached_line(*plan.cached))
    for name, speed in (("16 bits", plan.before), (plan.recipe, plan.after)):
        console.print(
            f"{plan.gpu}, {name}: prefill {speed.prefill_rate:,.0f} tokens/s, decode {speed.decode_rate:,.0f} tokens/s "
            f"at most (roofline, {speed.prompt:,} tokens, batch {speed.batch})"
        )
    for note in plan.notes:
        console.print(f"note: {note}")
