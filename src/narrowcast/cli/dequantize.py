"""``narrowcast formats dequantize``: say what a quantized model folder is, and write its weights as plain numbers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from narrowcast.cli.common import JsonFlag, console, dtype_of, emit, progress
from narrowcast.io.foreign import LAYOUTS, open_checkpoint, write_dense


def dequantize(
    folder: Annotated[Path, typer.Argument(help="Model folder in a known layout.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the plain model [only say what it is].")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the plain weights [the model's own].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a quantized model folder is, in one line; with --out, write it with plain weights that every tool loads.

    Known layouts: those of narrowcast, compressed-tensors, GPTQ, AWQ, bitsandbytes (4-bit), DeepSeek's fp8, ModelOpt,
    and FP-Quant.

    Example: narrowcast formats dequantize MODEL-int4 --out MODEL-plain
    """
    chosen = dtype_of(dtype) if dtype else None
    checkpoint = open_checkpoint(folder)
    said = checkpoint.describe()
    size = None
    if out is not None:
        with progress() as bar:
            task = bar.add_task("dequantizing", total=len(checkpoint.parts) + len(checkpoint.wide), note="")
            size = write_dense(checkpoint, out, chosen, lambda name: bar.update(task, advance=1, note=name))
    reader = checkpoint.reader
    payload: dict[str, Any] = {
        "folder": str(folder),
        "layout": reader.layout if reader else None,
        "formats": reader.formats if reader else None,
        "weights": len(checkpoint.parts),
        "wide": len(checkpoint.wide),
        "out": str(out) if out else None,
        "bytes": size,
        "known": list(LAYOUTS),
    }

    def show() -> None:
        console.print(said, soft_wrap=True)
        if out is not None:
            console.print(f"written: {out} ({size:,} bytes of tensors)", soft_wrap=True)

    emit(payload, as_json, show)
