"""Quantizing one part of a model, usually a block: what shares an input, what the calibration shows, and the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer
from narrowcast.io.quantized import LayerSpec, QuantizedLayer
from narrowcast.ptq.blocks import Forward
from narrowcast.ptq.groups import tied_by_name
from narrowcast.ptq.inputs import InputCast, attach
from narrowcast.ptq.layers import Narrowed, balance, narrow
from narrowcast.ptq.observe import Group, OnProduct, Statistics, Watch, wiring
from narrowcast.ptq.recipe import Awq, PtqRecipe
from narrowcast.ptq.targets import Target, spec_of


@dataclass
class Part:
    """What became of one part.

    Attributes:
        narrowed: every matrix that was quantized, in the model's order.
        layers: the same by weight, ready to be written.
        silent: input channels that were zero on every calibration row, by the name of the group's first weight.
        cache: what became of cached keys and values, by attention module.
    """

    narrowed: list[Narrowed] = field(default_factory=list)
    layers: list[QuantizedLayer] = field(default_factory=list)
    silent: dict[str, int] = field(default_factory=dict)
    cache: list[CacheLayer] = field(default_factory=list)


def quantize_part(model: nn.Module, members: list[Target], recipe: PtqRecipe, runs: Sequence[Forward]) -> Part:
    """Quantize ``members`` of ``model`` in place.

    Args:
        model: the model that holds them; only what ``runs`` runs need be in memory.
        members: the weights.
        recipe: how.
        runs: each runs the part on one calibration batch.
    """
    groups = wiring(model, members, runs[0]) if runs else tied_by_name(members)
    seen = _observe(groups, recipe, runs) if runs and (recipe.balance or recipe.solver) else {}
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    part = Part(silent=_silent(groups, seen))
    notes: dict[str, str] = {}
    for group in groups:  # all of them first: a factor may go into the rows of a matrix of an earlier group
        facts = seen.get((group.name, 0))
        if facts is not None and facts.rows:
            notes[group.name] = balance(group, facts, recipe, parameters)
    for group in groups:
        part.narrowed += narrow(group, lambda t, i, g=group: _facts(seen, g, t, i), recipe, notes.get(group.name, ""))  # type: ignore[misc]
    scheme = recipe.scheme
    wanted = scheme.static or (scheme.activation is not None and scheme.activation.scale.tensor_bits > 0)
    peaks = _peaks(groups, recipe, runs) if wanted else {}
    by_name = _by_target(part.narrowed)
    for group in groups:
        peak = peaks.get(group.name)
        _attach(group, recipe, modules, peak)
        for target in group.targets:
            matrices = tuple(row.quantized for row in by_name[target.name])
            spec = spec_of(target, recipe, group.name)
            part.layers.append(QuantizedLayer(spec, matrices, None if peak is None else float(peak)))
    return part


def specs_of(members: list[Target], recipe: PtqRecipe) -> list[LayerSpec]:
    """Return what ``members`` will become, grouped by their names; nothing is read or run."""
    return [spec_of(t, recipe, group.name) for group in tied_by_name(members) for t in group.targets]


def _by_target(narrowed: list[Narrowed]) -> dict[str, list[Narrowed]]:
    found: dict[str, list[Narrowed]] = {}
    for row in narrowed:
        found.setdefault(row.name.split("[")[0], []).append(row)
    return found


def _silent(groups: list[Group], seen: dict[tuple[str, int], Statistics]) -> dict[str, int]:
    """Return the groups with input channels that were never anything but zero, and how many these are."""
    counts = {g.name: int((seen[g.name, 0].amax == 0).sum()) for g in groups if (g.name, 0) in seen}
    return {name: count for name, count in counts.items() if count}


def _facts(seen: dict[tuple[str, int], Statistics], group: Group, target: Target, number: int) -> Statistics | None:
    return seen.get((target.name if target.kind == "experts" else group.name, number))


def _observe(groups: list[Group], recipe: PtqRecipe, runs: Sequence[Forward]) -> dict[tuple[str, int], Statistics]:
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
        if facts.hessian is not None and not facts.hessian.isfinite().all():
            raise InputError(
                f"the input of {name} reaches {float(facts.amax.max()):.3g} on the calibration data: its squares "
                "overflow float32; leave it wide (--keep-wide), or take a recipe without GPTQ and AWQ"
            )
    return seen


def _peaks(groups: list[Group], recipe: PtqRecipe, runs: Sequence[Forward]) -> dict[str, Tensor]:
    """Return the largest magnitude of each group's input as it is now, rotated where the recipe rotates, 0-d each."""
    peaks: dict[str, Tensor] = {}

    def note(target: Target, number: int, rows: Tensor) -> None:
        if len(rows):
            turned = recipe.scheme.transform.forward(rows.float()) if recipe.scheme.transform else rows.float()
            peak = turned.abs().amax()
            peaks[target.name] = torch.maximum(peaks[target.name], peak) if target.name in peaks else peak

    _watch(groups, note, runs)
    return peaks


def _watch(groups: list[Group], note: OnProduct, runs: Sequence[Callable[[], object]]) -> None:
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
