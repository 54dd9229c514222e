"""Quantize a model block by block: what one block has lost, the next one's calibration already sees.

A model is a list of like blocks with something before and after (a transformer), or one block as a whole (a
convolutional net). Only one block's statistics exist at a time; the calibration holds the inputs of one block.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer
from narrowcast.io.quantized import QuantizedLayer, remember
from narrowcast.ptq.blocks import Call, Forward, find_blocks, record
from narrowcast.ptq.cache import LiveCache
from narrowcast.ptq.catalogue import recipe as recipe_of
from narrowcast.ptq.layers import Narrowed
from narrowcast.ptq.part import Part, quantize_part
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.targets import Kept, Target, find_targets

#: called with (blocks done, blocks in all, name of the block)
OnBlock = Callable[[int, int, str], None]
#: one calibration batch: token ids, the model's keyword arguments, or something that runs the model itself
Batch = Tensor | Mapping[str, Any] | Forward


@dataclass
class Quantization:
    """What became of a model.

    Attributes:
        recipe: the recipe.
        narrowed: every matrix that was quantized, in the model's order.
        kept: the weights that stay wide, and why.
        layers: the quantized weights with all that a checkpoint needs of them.
        cache: what became of cached keys and values, by attention module; empty where they stay wide.
    """

    recipe: PtqRecipe
    narrowed: list[Narrowed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    layers: list[QuantizedLayer] = field(default_factory=list)
    cache: list[CacheLayer] = field(default_factory=list)

    def take(self, part: Part) -> None:
        """Add what became of one part."""
        self.narrowed += part.narrowed
        self.layers += part.layers


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    recipe: str | PtqRecipe,
    calibration: Iterable[Batch] = (),
    on_block: OnBlock = lambda *done: None,
) -> Quantization:
    """Quantize ``model`` in place and return what became of every weight.

    Args:
        model: in evaluation mode; weights are replaced by the values that their codes decode to (rotated where the
            recipe rotates), and modules whose input is narrowed get an `InputCast`. It then carries its quantized
            layers, for whoever saves it.
        recipe: what to do, or its name in `ptq.recipes()`.
        calibration: batches: int64 token ids ``[batch, length]``, mappings of the model's keyword arguments, or
            functions that run the model; may be empty where the recipe needs no calibration.
        on_block: progress.

    Raises InputError for a recipe that needs calibration and gets none, for NaN in weights or activations, and for what
    `find_targets` refuses. The model is changed in place: give a copy where the original is still needed.
    """
    recipe = recipe_of(recipe)
    targets, kept = find_targets(model, recipe.keep_wide)
    forwards = [forward_of(model, batch) for batch in calibration]
    if not forwards and recipe.needs_calibration:
        raise InputError(f"recipe {recipe.name} needs calibration data and got none; give some text")
    result = Quantization(recipe, kept=kept)
    prefix, blocks = find_blocks(model)
    inside = members_of(targets, prefix, len(blocks))
    placed = {t.name for members in inside for t in members}
    cache = LiveCache(model, recipe.kv) if recipe.kv is not None else None
    calls = [record(blocks, forward) for forward in forwards] if prefix else []
    for number, (block, members) in enumerate(zip(blocks, inside, strict=True)):
        on_block(number, len(blocks), f"{prefix}.{number}" if prefix else type(model).__name__)
        runs = [_runner(block, per_block[number]) for per_block in calls] if prefix else forwards
        if members:
            result.take(quantize_part(model, members, recipe, runs))
        if cache is not None:
            result.cache += cache.settle(f"{prefix}.{number}." if prefix else "", runs)
        if prefix:
            _advance(block, calls, number)
    outside = [t for t in targets if t.name not in placed]
    if outside:
        result.take(quantize_part(model, outside, recipe, forwards))
    on_block(len(blocks), len(blocks), "")
    remember(model, result.layers, result.cache)
    return result


def forward_of(model: nn.Module, batch: Batch) -> Forward:
    """Return what runs ``model`` on ``batch``."""
    if isinstance(batch, Tensor):
        key = getattr(model, "main_input_name", "input_ids")
        return lambda: model(**{key: batch})
    if isinstance(batch, Mapping):
        return lambda: model(**batch)
    if callable(batch):
        return batch
    raise InputError(f"calibration: found a {type(batch).__name__}, expected token ids, a mapping or a function")


def members_of(targets: list[Target], prefix: str, count: int) -> list[list[Target]]:
    """Return the targets inside each of ``count`` blocks; all of them where the model is one block."""
    if not prefix:
        return [targets]
    return [[t for t in targets if t.name.startswith(f"{prefix}.{i}.")] for i in range(count)]


def _runner(block: nn.Module, call: Call) -> Forward:
    return lambda: call.run(block)


def _advance(block: nn.Module, calls: list[list[Call]], number: int) -> None:
    """Hand each batch's output of block ``number`` to the next block and let go of its input."""
    for per_block in calls:
        hidden = per_block[number].run(block)
        per_block[number].hidden = hidden.new_empty(0)
        if number + 1 < len(per_block):
            per_block[number + 1].hidden = hidden
