"""Quantize a model block by block: what one block has lost, the next one's calibration already sees.

A model is a list of like blocks with something before and after (a transformer), or one block as a whole (a
convolutional net). Only one block's statistics exist at a time; the calibration holds the inputs of one block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.ptq.inputs import InputCast, attach
from narrowcast.ptq.layers import Narrowed, balance, narrow
from narrowcast.ptq.observe import Group, OnProduct, Statistics, Watch, wiring
from narrowcast.ptq.recipe import Awq, PtqRecipe
from narrowcast.ptq.targets import Kept, Target, find_targets

#: runs the model once on one calibration batch
Forward = Callable[[], object]
#: called with (blocks done, blocks in all, name of the block)
OnBlock = Callable[[int, int, str], None]


@dataclass
class Quantization:
    """What became of a model.

    Attributes:
        recipe: the recipe.
        narrowed: every matrix that was quantized, in the model's order.
        kept: the weights that stay wide, and why.
    """

    recipe: PtqRecipe
    narrowed: list[Narrowed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


@dataclass
class _Call:
    """How a block was called: first argument apart from the rest."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return (name, blocks) of the list of like modules with most parameters; (``""``, [model]) if there is none."""
    best: tuple[str, list[nn.Module]] = ("", [model])
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and len(module) > 1:
            size = sum(p.numel() for p in module.parameters())
            if size > most:
                best, most = (name, list(module)), size
    return best


@torch.no_grad()
def quantize_model(
    model: nn.Module, recipe: PtqRecipe, forwards: list[Forward], on_block: OnBlock = lambda *done: None
) -> Quantization:
    """Quantize ``model`` in place and return what became of every weight.

    Args:
        model: in evaluation mode; weights are replaced by the values that their codes decode to (rotated where the
            recipe rotates), and modules whose input is narrowed get an `InputCast`.
        recipe: what to do.
        forwards: each runs the model on one calibration batch; may be empty where the recipe needs no calibration.
        on_block: progress.

    Raises InputError for a recipe that needs calibration and gets none, for NaN in weights or activations, and for what
    `find_targets` refuses. The model is changed in place: give a copy where the original is still needed.
    """
    targets, kept = find_targets(model, recipe.keep_wide)
    if not forwards and recipe.needs_calibration:
        raise InputError(f"recipe {recipe.name} needs calibration data and got none; give some text")
    result = Quantization(recipe, kept=kept)
    prefix, blocks = find_blocks(model)
    inside = [[t for t in targets if _within(t, f"{prefix}.{i}" if prefix else "")] for i in range(len(blocks))]
    placed = {t.name for members in inside for t in members}
    calls = _calls(model, blocks, forwards) if prefix and forwards else []
    for number, (block, members) in enumerate(zip(blocks, inside, strict=True)):
        name = f"{prefix}.{number}" if prefix else type(model).__name__
        on_block(number, len(blocks), name)
        runs = [_runner(block, per_block[number]) for per_block in calls] if prefix else forwards
        if members:
            result.narrowed += _quantize_part(model, members, recipe, runs)
        if prefix:
            _advance(runs, calls, number)
    outside = [t for t in targets if t.name not in placed]
    if outside:
        result.narrowed += _quantize_part(model, outside, recipe, forwards)
    on_block(len(blocks), len(blocks), "")
    return result


def _within(target: Target, name: str) -> bool:
    return not name or target.name.startswith(f"{name}.")


# --- running one block ---


def _calls(model: nn.Module, blocks: list[nn.Module], forwards: list[Forward]) -> list[list[_Call]]:
    """Return, per batch, how each block is called; only the first block's hidden states are kept."""
    return [_calls_of_one(blocks, forward) for forward in forwards]


def _calls_of_one(blocks: list[nn.Module], forward: Forward) -> list[_Call]:
    calls: list[_Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
        first = hidden if not calls else hidden.new_empty(0)
        kept = {k: None if type(v).__name__.endswith("Cache") else v for k, v in kwargs.items()}  # it would grow
        calls.append(_Call(first.detach(), tuple(rest), {k: v for k, v in kept.items() if k != "hidden_states"}))

    with _pre_hooks(blocks, note):
        forward()
    if len(calls) != len(blocks):
        raise InputError(f"the model ran {len(calls)} of its {len(blocks)} blocks in one pass; expected each once")
    return calls


@contextmanager
def _pre_hooks(blocks: list[nn.Module], note: Any) -> Iterator[None]:
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runner(block: nn.Module, call: _Call) -> Callable[[], Any]:
    return lambda: block(call.hidden, *call.args, **call.kwargs)


def _advance(runs: list[Forward], calls: list[list[_Call]], number: int) -> None:
    """Hand each batch's output of block ``number`` to the next block and let go of its input."""
    for run, per_block in zip(runs, calls, strict=True):
        out: Any = run()
        hidden = out[0] if isinstance(out, tuple) else out
        per_block[number].hidden = hidden.new_empty(0)
        if number + 1 < len(per_block):
            per_block[number + 1].hidden = hidden


# --- quantizing one block ---


def _quantize_part(model: nn.Module, members: list[Target], recipe: PtqRecipe, runs: list[Forward]) -> list[Narrowed]:
    groups = wiring(model, members, runs[0]) if runs else [Group([t], why="no calibration") for t in members]
    seen = _observe(groups, recipe, runs) if recipe.balance or recipe.solver else {}
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    found: list[Narrowed] = []
    for group in groups:
        facts = seen.get((group.name, 0))
        note = balance(group, facts, recipe, parameters) if facts is not None and facts.rows else ""
        found += narrow(group, lambda t, i, g=group: _facts(seen, g, t, i), recipe, note)  # type: ignore[misc]
    peaks = _peaks(groups, recipe, runs) if recipe.scheme.static else {}
    for group in groups:
        _attach(group, recipe, modules, peaks.get(group.name))
    return found


def _facts(seen: dict[tuple[str, int], Statistics], group: Group, target: Target, number: int) -> Statistics | None:
    return seen.get((target.name if target.kind == "experts" else group.name, number))


def _observe(groups: list[Group], recipe: PtqRecipe, runs: list[Forward]) -> dict[tuple[str, int], Statistics]:
    """Return statistics of the rows per (group, matrix); experts count by their own name."""
    want_hessian = recipe.solver is not None or isinstance(recipe.balance, Awq)
    seen: dict[tuple[str, int], Statistics] = {}

    def note(target: Target, number: int, rows: Tensor) -> None:
        key = (target.name, number)
        if key not in seen:
            seen[key] = Statistics.empty(rows.shape[1], rows.device, want_hessian)
        seen[key].add(rows)

    _watch(groups, note, runs)
    for (name, _), facts in seen.items():
        if facts.nonfinite:
            raise InputError(f"the input of {name} is not finite on the calibration data; the model overflows there")
    return seen


def _peaks(groups: list[Group], recipe: PtqRecipe, runs: list[Forward]) -> dict[str, Tensor]:
    """Return the largest magnitude of each group's input as it is now, rotated where the recipe rotates, 0-d each."""
    peaks: dict[str, Tensor] = {}

    def note(target: Target, number: int, rows: Tensor) -> None:
        if len(rows):
            turned = recipe.scheme.transform.forward(rows.float()) if recipe.scheme.transform else rows.float()
            peak = turned.abs().amax()
            peaks[target.name] = torch.maximum(peaks[target.name], peak) if target.name in peaks else peak

    _watch(groups, note, runs)
    return peaks


def _watch(groups: list[Group], note: OnProduct, runs: list[Forward]) -> None:
    """Show every batch's rows to ``note``, once per group: its other weights meet the very same rows."""
    first = [
        t for group in groups for t in (group.targets if group.targets[0].kind == "experts" else group.targets[:1])
    ]
    with Watch(first, note):
        for run in runs:
            run()


def _attach(group: Group, recipe: PtqRecipe, modules: dict[str, nn.Module], peak: Tensor | None) -> None:
    scheme = recipe.scheme
    if scheme.activation is None and scheme.transform is None:
        return
    for module in {t.module: modules[t.module] for t in group.targets}.values():
        if not hasattr(module, "input_cast"):
            attach(module, InputCast(scheme.activation, scheme.transform, peak if scheme.static else None))
