"""``narrowcast formats``: list, show and compare number formats, on a page and in the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from narrowcast.analysis.curves import crossings, curves, usual_crests
from narrowcast.analysis.describe import catalogue, describe, families, presets
from narrowcast.analysis.tensors import against as judged_on
from narrowcast.cli.common import JsonFlag, SeedOption, console, emit, progress
from narrowcast.cli.formats_text import show_against, show_all, show_some
from narrowcast.errors import InputError
from narrowcast.formats import roundings
from narrowcast.io import open_tensors, write_atomic
from narrowcast.quantize import cast as cast_of
from narrowcast.report.formats import formats_page

_PAGES = Path("runs/formats")


def formats(
    names: Annotated[
        list[str] | None, typer.Argument(help="Formats, presets or cast spellings; none lists all.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A safetensors file: judge them on its matrices too.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help=f"Folder for formats.html [{_PAGES}].")] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """List number formats; or show some: values, range, and what they lose at each tile size, as text and as a page.

    The page, formats.html, also draws every value, the spacing and the law of the crest factor. With `--json` it is
    written only where `--out` says so.

    Example: narrowcast formats e4m3fn int8 mxfp4 nvfp4 --against model.safetensors
    """
    if not names:
        if against is not None or out is not None:
            raise InputError("--against and --out need formats to judge: name some, e.g. e4m3fn mxfp4")
        listed = {"formats": catalogue(), "families": families(), "presets": presets(), "roundings": list(roundings())}
        emit(listed, as_json, lambda: show_all(listed))
        return
    payload = _measure(names, against, seed, draw=(folder := out or (None if as_json else _PAGES)) is not None)
    page = None if folder is None else folder / "formats.html"
    if page is not None:
        write_atomic(page, formats_page(payload).encode())
    for row in payload["formats"]:
        row.pop("spacing", None), row.pop("crest", None)
    emit({"formats": payload["formats"], "against": payload["against"]}, as_json, lambda: _show(payload, page))


def _measure(names: list[str], file: Path | None, seed: int, draw: bool) -> dict[str, Any]:
    """Return the data of the page; without the curves unless they are to be drawn."""
    casts = {name: cast_of(name) for name in names}  # all names are checked before anything is measured
    tensors = open_tensors(file) if file else None
    with progress() as bar:
        task = bar.add_task("measuring", total=len(casts) + len(tensors or ()), note="")

        def step(note: str) -> None:
            bar.update(task, advance=1, note=note)

        rows: dict[str, dict[str, Any]] = {}
        for name in casts:
            row = describe(name, seed) | (curves(name) if draw else {})
            rows.setdefault(row["name"], row)  # an alias and its format are shown once
            step(name)
        found = None
        if tensors is not None:
            named = {row["name"]: cast_of(row["name"]) for row in rows.values()}
            found = {"name": tensors.path.name, **judged_on(tensors, named, seed, step)}
    shown = list(rows.values())
    drawn = {"crests": usual_crests(seed), "crossings": crossings(shown)} if draw else {}
    return {"formats": shown, "against": found, **drawn}


def _show(payload: dict[str, Any], page: Path | None) -> None:
    show_some(payload["formats"])
    if payload["against"] is not None:
        show_against(payload["against"])
    if page is not None:
        console.print(f"page: {page}", soft_wrap=True)
