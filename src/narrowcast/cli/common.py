"""What every verb shares: options, output for people and for machines, progress."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from narrowcast.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides weights, batches and random bits.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Text file or folder [standard library's source].")]
ModelOption = Annotated[Path | None, typer.Option("--model", help="Model folder or config.json [a small Llama].")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (the GPU where there is one), cpu or cuda.")]
WideOption = Annotated[
    str, typer.Option("--wide", help="What the recipe leaves wide: auto (bfloat16 on a GPU), float32 or bfloat16.")
]
AttentionOption = Annotated[
    str,
    typer.Option("--attention", help="On a GPU: auto (the fastest), cudnn, flash, flash4, efficient, math or torch."),
]
CompileFlag = Annotated[bool, typer.Option("--compile", help="Run the model compiled.")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="CPU threads; 0 leaves torch's choice.")]

_PIPE_WIDTH = 160  # columns where nobody's terminal says otherwise: wide enough that no table wraps


def _width() -> int | None:
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH


#: stdout for people. Markup is off, so that a path with brackets prints as it is: pass ``style=`` instead.
console = Console(markup=False, emoji=False, highlight=False, width=_width())


def emit(payload: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``payload`` as one JSON document (NaN and infinities as null), or let ``show`` print it for people."""
    if as_json:
        sys.stdout.write(json.dumps(_finite(payload), indent=1, allow_nan=False) + "\n")
    else:
        show()


def _finite(value: Any) -> Any:
    """Return ``value`` with every non-finite float replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def progress() -> Progress:
    """Return a progress bar on stderr with a free text field ``note`` and the time left; mute without a terminal."""
    stderr = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    )


def use_threads(threads: int) -> None:
    """Set torch's CPU threads; 0 leaves them alone."""
    import torch

    if threads < 0:
        raise InputError(f"--threads: expected 0 or more, found {threads}")
    if threads:
        torch.set_num_threads(threads)


def dtype_of(name: str) -> "torch.dtype":
    """Return the dtype that ``--dtype`` names."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"--dtype {name}: unknown{nearest(name, known)}")
    return known[name]


def megabytes(size: float) -> str:
    """Return bytes as text in MB (10**6)."""
    return f"{size / 1e6:.2f} MB"
