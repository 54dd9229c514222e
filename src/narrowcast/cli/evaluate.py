"""``narrowcast evaluate``."""

import math
from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.common import DataOption, JsonFlag, ThreadsOption, console, emit, use_threads
from narrowcast.evaluate import evaluate_folder


def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder or Hugging Face model folder.")],
    data: DataOption = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to run under [a run's own; fp32 for a model].")] = None,
    window: Annotated[int, typer.Option(help="Tokens per window; 0 takes the model's own context.")] = 0,
    batch: Annotated[int, typer.Option(help="Windows per batch.")] = 8,
    limit: Annotated[int, typer.Option(help="At most this many windows; 0 for all.")] = 0,
    threads: ThreadsOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measure perplexity and bits per byte of a run or a model folder.

    A run is evaluated on its own validation text unless --data is given; of --data every document counts.

    Example: narrowcast evaluate runs/fp8 --recipe fp8-rowwise
    """
    use_threads(threads)
    found = evaluate_folder(path, data=data, recipe_name=recipe, window=window, batch=batch, limit=limit)

    def show() -> None:
        console.print(f"model           {path} under {found['recipe']}", highlight=False)
        console.print(
            f"text            {found['text']}: {found['tokens']:,} tokens, {found['bytes']:,} bytes", highlight=False
        )
        console.print(f"loss            {found['loss']:.4f} nats per token", highlight=False)
        console.print(f"perplexity      {found['perplexity']:.3f}", highlight=False)
        console.print(f"bits per byte   {found['bits_per_byte']:.4f}", highlight=False)

    emit({k: None if isinstance(v, float) and math.isinf(v) else v for k, v in found.items()}, as_json, show)
