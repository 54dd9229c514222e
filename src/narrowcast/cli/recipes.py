"""``narrowcast recipes``: list and show recipes, each with its paper."""

from typing import Annotated, Any

import typer
from rich.table import Table

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Gemm
from narrowcast.optim import Method, optimizers
from narrowcast.recipes import Recipe
from narrowcast.recipes import recipe as recipe_of
from narrowcast.recipes import recipes as all_recipes

_GEMMS = {"fwd": "y = x w^T", "dgrad": "dx = g w", "wgrad": "dw = g^T x"}


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to show; none lists all.")] = None,
    post_training: Annotated[bool, typer.Option(help="Those of 'narrowcast quantize' instead of training's.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List recipes and optimizers, or show one recipe: the casts of its three gemms, what stays wide, its paper.

    Example: narrowcast recipes mxfp4-rht-sr+fp8-adam
    """
    if post_training:
        _post_training(name, as_json)
        return
    if name is None:
        rows = [_line(r) for r in all_recipes().values()]
        states = [_states(method) for method in optimizers().values()]
        emit({"recipes": rows, "optimizers": states}, as_json, lambda: _show_both(rows, states))
        return
    found = describe(recipe_of(name))
    emit(found, as_json, lambda: _show_one(found))


def _post_training(name: str | None, as_json: bool) -> None:
    """Show one recipe for trained models, or list them."""
    from narrowcast.ptq import catalogue

    if name is None:
        rows = [{"name": r.name, "summary": r.summary, "paper": r.paper} for r in catalogue.recipes().values()]
        emit({"recipes": rows}, as_json, lambda: _show_all(rows))
        return
    chosen = catalogue.recipe(name)
    found = {**chosen.to_json(), "summary": chosen.summary, "paper": chosen.paper}
    emit(found, as_json, lambda: _show_facts(found))


def _show_facts(found: dict[str, Any]) -> None:
    console.print(found["name"], style="bold")
    console.print(f"  {found['summary']}")
    for key, value in found.items():
        if key not in ("name", "summary") and value not in (None, False):
            console.print(f"  {key.replace('_', ' '):<12} {', '.join(value) if isinstance(value, list) else value}")


def _line(r: Recipe) -> dict[str, Any]:
    return {"name": r.name, "summary": r.summary, "paper": r.paper}


def _states(method: Method) -> dict[str, Any]:
    kept = {name: str(storage) for name, storage in method.storages.items()}
    size = method.bytes_per_parameter(1 << 20)
    return {
        "name": method.name,
        "bytes_per_parameter": size,
        "states": kept,
        "summary": method.summary,
        "paper": method.paper,
    }


def describe(r: Recipe) -> dict[str, Any]:
    """Return everything that a recipe says, as plain JSON values; ``gemms`` is empty for plain float32."""
    scale = r.loss_scale
    return {
        **_line(r),
        "gemms": {name: _gemm(r.linear, name) for name in _GEMMS} if r.linear else {},
        "keep_wide": list(r.keep_wide),
        "changes": [str(change) for change in r.changes],
        "parametrisation": r.parametrisation and str(r.parametrisation),
        "optimizer": r.optimizer,
        "loss_scale": scale and {k: getattr(scale, k) for k in ("initial", "growth", "backoff", "interval")},
    }


def _gemm(spec: LinearSpec, name: str) -> dict[str, Any]:
    gemm: Gemm = getattr(spec, name)
    operands = {
        label.split(".")[1]: {"operand": str(spec.operand(label)), "cast": str(spec.cast(label))}
        for label in OPERANDS
        if label.startswith(f"{name}.")
    }
    return {
        "product": _GEMMS[name],
        "operands": operands,
        "transform": str(gemm.transform) if gemm.transform else None,
        "out": gemm.out.name if gemm.out else "float32",
    }


def _show_both(rows: list[dict[str, Any]], states: list[dict[str, Any]]) -> None:
    _show_all(rows)
    console.print("\nRECIPE+OPTIMIZER: master weights and moments kept as one of these; else AdamW in float32\n")
    table = Table(box=None, pad_edge=False)
    for head in ("optimizer", "bytes", "summary", "paper"):
        table.add_column(head)
    for row in states:
        table.add_row(row["name"], f"{row['bytes_per_parameter']:.2f}", row["summary"], row["paper"])
    console.print(table)


def _show_all(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in ("recipe", "summary", "paper"):
        table.add_column(head)
    for row in rows:
        table.add_row(row["name"], row["summary"], row["paper"])
    console.print(table)


def _show_one(found: dict[str, Any]) -> None:
    console.print(found["name"], style="bold")
    console.print(f"  {found['summary']}")
    console.print(f"  paper        {found['paper']}")
    console.print(f"  optimizer    {found['optimizer'] or 'AdamW, float32'}")
    scale = found["loss_scale"]
    dynamic = scale and "starts at {initial:g}, x{growth:g} after {interval} good steps, x{backoff:g} at an overflow"
    console.print(f"  loss scale   {dynamic.format(**scale) if scale else 'none'}")
    if not found["gemms"]:
        console.print("  stays wide   everything, in float32")
        return
    console.print(f"  stays wide   {', '.join((*found['keep_wide'], 'and whatever is not a linear layer'))}")
    for change in found["changes"]:
        console.print(f"  changed      {change}")
    if found["parametrisation"]:
        console.print(f"  form         {found['parametrisation']}")
    console.print()
    console.print(_gemm_table(found["gemms"]))
    console.print("\nx input, w weight, g gradient of the output; 'reuse': the codes of the tensor's first cast")


def _gemm_table(gemms: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("gemm", "product", "operand", "cast", "shared transform", "output"):
        table.add_column(head)
    for name, gemm in gemms.items():
        for i, (tensor, cast) in enumerate(gemm["operands"].items()):
            spelling = cast["operand"] + (f"  (= {cast['cast']})" if cast["operand"] == "reuse" else "")
            first = i == 0
            shared = (gemm["transform"] or "none", gemm["out"]) if first else ("", "")
            table.add_row(name if first else "", gemm["product"] if first else "", tensor, spelling, *shared)
    return table
