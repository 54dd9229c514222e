"""``narrowcast verify``: native against emulate, on the user's own machine."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from narrowcast.backend import capability
from narrowcast.cli.common import DeviceOption, JsonFlag, SeedOption, console, emit, progress
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import versions, write_atomic
from narrowcast.optim import optimizers
from narrowcast.recipes import recipe, recipes
from narrowcast.verify import SHAPES, SMALL, Finding, OptimizerFinding, verify_all


def verify(
    names: Annotated[str, typer.Option("--recipes", help="Comma-separated names [all, and all optimizers].")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One small shape.")] = False,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for verify-DEVICE.json [none].")] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Prove that kernels give the emulation's bits: codes, scales, products and optimizer steps, on this machine.

    Shapes that no tile divides, rows of zeros, outliers, subnormals, NaN and infinities. Codes and scales must be equal
    bit for bit, also where a norm, a gate or a gradient is made in the same pass; products lie within what the tensor
    core's accumulator may lose, also as 16 bits. RECIPE+OPTIMIZER tries that optimizer's steps
    too. Exit status 1 where not. Without a GPU, TRITON_INTERPRET=1 in the environment interprets the kernels on the
    CPU, slowly: add --quick.

    Example: narrowcast verify --recipes fp8-tensorwise,fp8-block+fp8-adam
    """
    where = _device(device)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder or nothing")
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    states = dict.fromkeys(s for s in (recipe(n).optimizer for n in wanted) if s) if wanted else optimizers()
    wanted = wanted or list(recipes())
    with progress() as bar:
        task = bar.add_task("verify", total=len(wanted) + len(states), note="")

        def note(what: str) -> None:
            bar.update(task, advance=1, note=what)

        found, steps = verify_all(wanted, states, where, seed=seed, quick=quick, note=note)
    shapes = [list(s) for s in (SMALL if quick else SHAPES)]
    payload = {
        "machine": versions(), "device": where.type, "bounds": _bounds(where), "shapes": shapes, "seed": seed,
        "recipes": [f.to_json() for f in found], "optimizers": [f.to_json() for f in steps],
    }  # fmt: skip
    file = None if out is None else out / f"verify-{where.type}.json"
    if file is not None:
        write_atomic(file, (json.dumps(payload, indent=1) + "\n").encode())
    emit(payload, as_json, lambda: _show(found, steps, where, file))
    failed = _failed(found, steps)
    if failed:
        (kind, name, first), others = failed[0], ", ".join(name for _, name, _ in failed[1:])
        raise CheckFailed(f"{kind} {name}: {first}" + (f"; also {others}" if others else ""))


def _failed(found: list[Finding], steps: list[OptimizerFinding]) -> list[tuple[str, str, str]]:
    """Return kind, name and first difference of all that failed."""
    recipes_ = [("recipe", f.recipe, f.first) for f in found if not f.ok]
    return recipes_ + [("optimizer", f.optimizer, f.first) for f in steps if not f.ok]


def _bounds(where: torch.device) -> str:
    """Return whose accumulator the bounds of products are, and what that means here."""
    if where.type != "cuda":
        return "float32's, summed in any order"
    major, minor = torch.cuda.get_device_capability(where)
    hopper = "Hopper's (sm_90)"
    if major == 9:
        return hopper
    return f"{hopper}, as is the model; this is sm_{major}{minor}: a product beyond them may be its own way of summing"


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


def _show(found: list[Finding], steps: list[OptimizerFinding], where: torch.device, file: Path | None) -> None:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "Triton's interpreter"
    console.print(f"native against emulate on {name}\n")
    console.print(_table(("recipe", "codes", "passes", "products", "16 bits", "worst", "model"), map(_row, found)))
    console.print(f"\n{_LEGEND}\nbounds    {_bounds(where)}\n", style="dim")
    if steps:
        rows = [(f.optimizer, _count(f.parts, f.differing), "ok" if f.ok else "FAILED") for f in steps]
        console.print(_table(("optimizer", "states"), rows))
        console.print(f"\n{_STATES}\n", style="dim")
    for f in found:
        for gemm, kernel in f.kernels.items():
            if kernel.startswith("emulated"):
                console.print(f"{f.recipe}, {gemm}: {kernel}", style="dim")
        if f.fp8 + f.beyond_fp8:
            count = f"{f.fp8} of {f.fp8 + f.beyond_fp8} products fit FP8 units, the others ran in bfloat16"
            console.print(f"{f.recipe}: {count}", style="dim")
        if f.rounded < f.roundings:
            share = f"{_floor(100 * f.rounded / f.roundings)} %"
            console.print(f"{f.recipe}, 16 bits: {share} of elements are the rounding of the model's sums", style="dim")
    for _, name, first in _failed(found, steps):
        console.print(f"{name} FAILED: {first}", style="bold")
    if file is not None:
        console.print(f"written: {file}")


_LEGEND = """\
codes     operands whose codes and scales are equal, bit for bit
passes    norms, gates and gradients made in one pass with their codes: equal, bit for bit
products  whose every element lies within what the accumulator may lose
16 bits   the same written in bfloat16 and float16, within that too
worst     the largest error of a product as a share of its bound
model     elements of products that the accumulator's model gives bit for bit"""
_STATES = "states    parameters, moments and masters after each step: equal, bit for bit"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in (*heads, ""):
        table.add_column(head, justify="left" if head in (heads[0], "") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _row(f: Finding) -> tuple[str, ...]:
    if not f.codes:
        return (f.recipe, "none", "none", "none", "none", "", "", "emulated")
    share = f"{_floor(100 * f.equal / f.modelled)} %" if f.modelled else ""
    counts = ((f.codes, f.differing), (f.fused, f.fused_differing), (f.products, f.failed), (f.written, f.misrounded))
    return (f.recipe, *(_count(*c) for c in counts), f"{f.worst:.3f}", share, "ok" if f.ok else "FAILED")


def _count(tried: int, wrong: int) -> str:
    """Return how many are right; of how many, where that is not all."""
    return f"{tried - wrong}/{tried}" if wrong else str(tried or "none")


def _floor(share: float) -> str:
    """Return a share with two digits, never rounded up: 100.00 means all."""
    return f"{math.floor(share * 100) / 100:.2f}"
