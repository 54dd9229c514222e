"""``narrowcast verify``: native against emulate, on the user's own machine."""

import json
import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from narrowcast.backend import capability
from narrowcast.cli.common import DeviceOption, JsonFlag, SeedOption, console, emit, progress
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import versions, write_atomic
from narrowcast.recipes import recipe, recipes
from narrowcast.verify import SHAPES, SMALL, Finding
from narrowcast.verify import verify as run


def verify(
    names: Annotated[str, typer.Option("--recipes", help="Comma-separated names [all].")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One small shape.")] = False,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for verify-DEVICE.json [none].")] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Prove that kernels give the emulation's bits: codes, scales and products of every recipe, on this machine.

    Shapes that no tile divides, rows of zeros, outliers, subnormals, NaN and infinities. Codes and scales must be equal
    bit for bit; products lie within what the tensor core's accumulator may lose. Exit status 1 where not. Without a
    GPU, TRITON_INTERPRET=1 in the environment interprets the kernels on the CPU, slowly: add --quick.

    Example: narrowcast verify --recipes fp8-tensorwise,fp8-block
    """
    where = _device(device)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder or nothing")
    wanted = [n.strip() for n in names.split(",") if n.strip()] or list(recipes())
    for name in wanted:
        recipe(name)
    with progress() as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*invalid value", RuntimeWarning)  # numpy's, in Triton's interpreter
        task = bar.add_task("verify", total=len(wanted), note="")
        found = run(
            wanted, where, shapes=SMALL if quick else SHAPES, seed=seed,
            note=lambda what: bar.update(task, advance=1, note=what),
        )  # fmt: skip
    shapes = [list(s) for s in (SMALL if quick else SHAPES)]
    payload = {
        "machine": versions(), "device": where.type, "shapes": shapes, "seed": seed,
        "recipes": [f.to_json() for f in found],
    }  # fmt: skip
    file = None if out is None else out / f"verify-{where.type}.json"
    if file is not None:
        write_atomic(file, (json.dumps(payload, indent=1) + "\n").encode())
    emit(payload, as_json, lambda: _show(found, where, file))
    failed = [f.recipe for f in found if not f.ok]
    if failed:
        first = next(f.first for f in found if not f.ok)
        raise CheckFailed(f"recipe {failed[0]}: {first}" + (f"; also {', '.join(failed[1:])}" if failed[1:] else ""))


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    where = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here")
    reason = capability(where, "float16")
    if reason is not None:
        raise InputError(f"nothing to verify: {reason}; TRITON_INTERPRET=1 interprets the kernels on a CPU, slowly")
    return where


def _show(found: list[Finding], where: torch.device, file: Path | None) -> None:
    table = Table(box=None, pad_edge=False)
    for head in ("recipe", "codes", "products", "worst", "model", ""):
        table.add_column(head, justify="left" if head in ("recipe", "") else "right", no_wrap=True)
    for f in found:
        table.add_row(*_row(f))
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "Triton's interpreter"
    console.print(f"native against emulate on {name}\n")
    console.print(table)
    console.print(f"\n{_LEGEND}\n", style="dim")
    for f in found:
        for gemm, kernel in f.kernels.items():
            if kernel.startswith("emulated"):
                console.print(f"{f.recipe}, {gemm}: {kernel}", style="dim")
    for f in found:
        if not f.ok:
            console.print(f"{f.recipe} FAILED: {f.first}", style="bold")
    if file is not None:
        console.print(f"written: {file}")


_LEGEND = """\
codes     operands whose codes and scales are equal, bit for bit
products  whose every element lies within what the accumulator may lose
worst     the largest error as a share of that
model     elements of products that the accumulator's model gives bit for bit"""


def _row(f: Finding) -> tuple[Any, ...]:
    if not f.codes:
        return (f.recipe, "none", "none", "", "", "emulated")
    share = f"{_floor(100 * f.equal / f.modelled)} %" if f.modelled else ""
    within = f"{f.products - f.failed} of {f.products}"
    equal = f"{f.codes - f.differing} of {f.codes}"
    return (f.recipe, equal, within, f"{f.worst:.3f}", share, "ok" if f.ok else "FAILED")


def _floor(share: float) -> str:
    """Return a share with two digits, never rounded up: 100.00 means all."""
    return f"{math.floor(share * 100) / 100:.2f}"
