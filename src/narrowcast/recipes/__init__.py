"""Floor 5: one file per method, each a `Recipe` and its paper. A new recipe is one file and one row here."""

from importlib import import_module

from torch import nn

from narrowcast.errors import InputError, nearest
from narrowcast.nn.convert import Conversion
from narrowcast.optim.catalogue import optimizers
from narrowcast.recipes.recipe import JOINED, LossScale, Recipe

_MODULES = (
    "fp32",
    "bf16",
    "fp16",
    "fp8_delayed",
    "fp8_tensorwise",
    "fp8_rowwise",
    "fp8_static",
    "fp8_smooth_swiglu",
    "fp8_coat",
    "fp8_block",
    "fp8_hybrid",
    "mxfp8",
    "mxfp4",
    "mxfp4_rht_sr",
    "nvfp4",
    "int8_block",
)


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name, from the widest to the narrowest."""
    found = [import_module(f"narrowcast.recipes.{name}").RECIPE for name in _MODULES]
    return {r.name: r for r in found}


def recipe(name: str | Recipe) -> Recipe:
    """Return the recipe called ``name``; InputError with the nearest names.

    ``RECIPE+OPTIMIZER``, e.g. ``fp8-rowwise+fp8-adam``, is a recipe with its optimizer's states kept as one of
    `nc.optimizers()` says; ``RECIPE+joined`` has norm and gated unit in one with their casts (`Recipe.joined`).
    ``RECIPE@ACCUMULATOR``, e.g. ``fp8-rowwise@hopper-fp8``, sums its gemms' products so. All:
    ``RECIPE@ACCUMULATOR+joined+OPTIMIZER``.
    """
    if isinstance(name, Recipe):
        return name
    known = recipes()
    rest, *parts = name.split("+")
    base, at, sums = rest.partition("@")
    if base not in known:
        raise InputError(f"unknown recipe {name!r}{nearest(base, known)}")
    found = known[base].with_accumulator(sums) if at else known[base]
    if len({part == JOINED for part in parts}) < len(parts):
        raise InputError(f"recipe {name!r}: expected at most one optimizer and one '+{JOINED}'")
    for part in parts:
        if part not in (choices := (JOINED, *optimizers())):
            raise InputError(f"recipe {name!r}: unknown {part!r} after '+'{nearest(part, choices)}")
        found = found.joined() if part == JOINED else found.with_optimizer(part)
    return found


def convert(
    model: nn.Module, name: str | Recipe, backend: str = "auto", seed: int = 0, only: tuple[str, ...] = ()
) -> Conversion:
    """Swap the layers of ``model`` in place after a recipe and return the table of every matmul site."""
    return recipe(name).convert(model, backend=backend, seed=seed, only=only)


__all__ = ["LossScale", "Recipe", "convert", "recipe", "recipes"]
