"""How ``narrowcast formats`` prints what it found."""

import math
from typing import Any

from rich.table import Table

from narrowcast.analysis.describe import SHAPE
from narrowcast.cli.common import console

_FIELDS = ("sign", "exponent", "mantissa")


def number(x: float) -> str:
    """Return ``x`` in at most six digits: ``448``, ``0.015625``, ``5.96046e-08``."""
    return f"{x:.6g}"


def show_all(payload: dict[str, Any]) -> None:
    """Print the catalogue, how to name what it leaves out, the presets and the roundings."""
    table = Table(box=None, pad_edge=False)
    table.add_column("format")
    for head in ("bits", "s/e/m", "max", "smallest normal", "smallest"):
        table.add_column(head, justify="right")
    table.add_column("specials")
    for row in payload["formats"]:
        layout = "/".join("-" if row[key] is None else str(row[key]) for key in _FIELDS)
        range_ = (number(row[key]) for key in ("max", "smallest_normal", "smallest"))
        table.add_row(row["name"], str(row["bits"]), layout, *range_, row["specials"])
    console.print(table)
    console.print("\ns/e/m: bits of sign, exponent and mantissa (or integer), at most; -: no such field\n")
    console.print("Any other member of a family goes by a name that spells out its fields:")
    for row in payload["families"]:
        console.print(f"  {row['what']}", soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("preset")
    table.add_column("bits per element", justify="right")
    table.add_column("spelling")
    for row in payload["presets"]:
        table.add_row(row["name"], f"{row['bits_per_element']:.3f}", row["spelling"])
    console.print(table)
    console.print(f"\nroundings: {', '.join(payload['roundings'])}")


def show_some(found: list[dict[str, Any]]) -> None:
    """Print what `describe` found, one after another, and a comparison of several."""
    for row in found:
        _show_one(row)
    if len(found) > 1:
        _compare(found)


def _show_one(row: dict[str, Any]) -> None:
    console.print(row["name"], style="bold")
    if "spelling" in row:
        console.print(f"  spelling         {row['spelling']}")
        console.print(f"  bits/element     {row['bits_per_element']:.3f} (a {SHAPE[0]} x {SHAPE[1]} tensor)")
    layout = ", ".join(f"{row[key]} {key}" for key in _FIELDS if row[key] is not None)
    layout += f" ({row['note']})" if row["note"] else ""
    console.print(f"  element          {row['element']}: {row['bits']} bits = {layout}; specials: {row['specials']}")
    ends = (f"{key.replace('_', ' ')} {number(row[key])}" for key in ("max", "smallest_normal", "smallest"))
    console.print(f"  range            {', '.join(ends)}")
    reach = row["reach"]
    count = "" if reach["magnitudes"] is None else f"{reach['magnitudes']:,} magnitudes over "
    console.print(f"  reach            {count}{reach['binades']:.1f} binades, {reach['decibels']:.0f} dB")
    error = row["error"]
    scale = "its own scales" if error["scale"] is None else f"scale {number(error['scale'])}"
    quality = f"MSE {error['mse']:.4g}, SQNR {_decibels(error)} dB"
    console.print(f"  on {error['distribution']:<14}{quality} with {scale}")
    _show_losses(row["sqnr_db"])
    if "values" in row:
        console.print(f"  values           {_header(row['values'])}")
        _show_values(row["values"])
    console.print()


def _show_losses(sqnr: dict[str, dict[str, float | None]], title: str = "  SQNR dB") -> None:
    """Print SQNR by distribution (or cast) and tile."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for tile in next(iter(sqnr.values())):
        table.add_column(tile, justify="right")
    for name, at in sqnr.items():
        table.add_row(f"  {name}", *("exact" if d is None else f"{d:.2f}" for d in at.values()))
    console.print(table)


def show_against(found: dict[str, Any]) -> None:
    """Print what `analysis.tensors.against` found: pooled, and the tensor that each format serves worst."""
    judged, passed = len(found["tensors"]), len(found["passed_over"])
    console.print(f"on {found['name']}", style="bold", end="")
    matrices, others = "matrix" if judged == 1 else "matrices", "tensor" if passed == 1 else "tensors"
    console.print(f": {judged} {matrices}, {passed} other {others} passed over; pooled")
    _show_losses(found["pooled"])
    for name in found["pooled"]:
        tile = found["compared"][name]
        lossy = [(row["sqnr_db"][name][tile], row["name"]) for row in found["tensors"]]
        worst = min((pair for pair in lossy if pair[0] is not None), default=None)
        if worst is not None:
            console.print(f"  worst tensor for {name}, {tile}: {worst[1]}, {worst[0]:.2f} dB")


def _decibels(error: dict[str, Any]) -> str:
    return f"{error['sqnr_db']:.2f}" if math.isfinite(error["sqnr_db"]) else "inf"


def _mirrored(values: list[float]) -> bool:
    return values[0] < 0 and values == [-v for v in reversed(values)]


def _header(values: list[float]) -> str:
    return f"{len(values)} finite" + (", each with either sign" if _mirrored(values) else "")


def _show_values(values: list[float]) -> None:
    """Print values eight to a line: magnitudes alone where both signs have the same."""
    shown = [v for v in values if v >= 0] if _mirrored(values) else values
    texts = [number(v) for v in shown]
    width = max(len(text) for text in texts)
    for start in range(0, len(texts), 8):
        console.print("    " + "  ".join(text.rjust(width) for text in texts[start : start + 8]))


def _compare(found: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("best first")
    for head in ("bits/element", "SQNR dB", "MSE"):
        table.add_column(head, justify="right")
    for row in sorted(found, key=lambda r: -r["error"]["sqnr_db"]):
        bits = row.get("bits_per_element", float(row["bits"]))
        table.add_row(row["name"], f"{bits:.3f}", _decibels(row["error"]), f"{row['error']['mse']:.4g}")
    console.print(table)
