"""``narrowcast formats convert``: rewrite a safetensors file in a format, and say what each tensor lost."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from narrowcast.analysis.format_error import at_tile
from narrowcast.analysis.loss import decibels
from narrowcast.cli.common import JsonFlag, SeedOption, console, emit, progress
from narrowcast.errors import InputError
from narrowcast.io import open_tensors
from narrowcast.quantize import Cast
from narrowcast.quantize import cast as cast_of
from narrowcast.rewrite import Job, Rewritten, rewrite, rewrite_codes
from narrowcast.scaling import tile as tile_of


def convert(
    file: Annotated[Path, typer.Argument(help="A safetensors file.")],
    to: Annotated[str, typer.Option("--to", help="Format, preset or cast spelling.")],
    tile: Annotated[
        str | None, typer.Option("--tile", help="Elements that share a scale: tensor, row, 1xN or MxN.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The new file [FILE's name with the format in it].")] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Copy the tensors of this name or pattern; may be repeated.")
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="Write packed codes and scales instead of values.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing new file.")] = False,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Rewrite FILE with every value on the grid of a format, and print what each tensor lost.

    A bare format takes the values as they are; with `--tile` each tile gets a float32 scale. Names, dtypes, shapes and
    metadata stay, so the new file loads wherever FILE does. Tensors of integers are copied.

    Example: narrowcast formats convert model.safetensors --to posit8_1 --tile 1x32
    """
    job = Job(_cast(to, tile), tuple(keep or ()), seed)
    words = [file.stem, to.replace("/", "-"), *([tile] if tile else []), *(["codes"] if codes else [])]
    target = out or file.with_name("-".join(words) + ".safetensors")
    count = len(open_tensors(file))
    if target.is_dir():
        raise InputError(f"--out {target}: a folder, expected the name of the new file")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; replace it with --overwrite or name another with --out")
    with progress() as bar:
        task = bar.add_task("converting", total=count, note="")
        write = rewrite_codes if codes else rewrite
        rows = write(file, target, job, lambda name: bar.update(task, advance=1, note=name))
    tensors = [row.to_json() for row in rows]
    payload = {"file": str(target), "cast": str(job.cast), "total": _total(rows), "tensors": tensors}
    emit(payload, as_json, lambda: _show(rows, payload))


def _cast(to: str, tile: str | None) -> Cast:
    cast = cast_of(to)
    if tile is None:
        return cast
    try:
        size = tile_of(tile)
    except InputError as error:
        raise InputError(f"--tile: {error}") from None
    return at_tile(cast, size)


def _total(rows: list[Rewritten]) -> dict[str, Any]:
    """Return the pooled SQNR and the bytes of the new file's tensors."""
    losses = [row.loss for row in rows if row.loss is not None]
    pooled = decibels(sum(x.signal for x in losses), sum(x.noise for x in losses))
    return {"narrowed": len(losses), "sqnr_db": pooled, "bytes": sum(row.bytes for row in rows)}


def _show(rows: list[Rewritten], payload: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor")
    for head in ("shape", "dtype", "SQNR dB", "max error", "saturated", "underflowed"):
        table.add_column(head, justify="right")
    for row in (r for r in rows if r.loss is not None):
        table.add_row(row.name, "x".join(map(str, row.shape)) or "number", row.dtype, *_figures(row))
    console.print(table)
    total = payload["total"]
    pooled = "nothing lost" if total["sqnr_db"] is None else f"{total['sqnr_db']:.2f} dB over all of them"
    console.print(f"\n{total['narrowed']} of {len(rows)} tensors narrowed to {payload['cast']}: {pooled}")
    for row in rows:
        if row.became == "copied":
            console.print(f"copied as it is: {row.name} ({row.dtype}: {row.why})")
        if row.again:
            console.print(f"rounded again by its own {row.dtype}: {row.again:.1%} of {row.name}", style="dim")
        if row.broken:
            console.print(f"infinite or NaN now: {row.broken} values of {row.name}; give it a scale with --tile")
    console.print(f"written: {payload['file']} ({total['bytes']:,} bytes of tensors)", soft_wrap=True)


def _figures(row: Rewritten) -> list[str]:
    assert row.loss is not None
    sqnr = "not finite" if row.broken else "exact" if row.loss.sqnr_db is None else f"{row.loss.sqnr_db:.2f}"
    return [sqnr, f"{row.loss.max_error:.4g}", f"{row.loss.saturate:.2%}", f"{row.loss.underflow:.2%}"]
