"""Floor 5: one file per method, each a `Recipe` and its paper. A new recipe is one file and one row here."""

from importlib import import_module

from torch import nn

from narrowcast.errors import InputError, nearest
from narrowcast.nn.convert import Conversion
from narrowcast.recipes.recipe import LossScale, Recipe

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
    `nc.optimizers()` says.
    """
    if isinstance(name, Recipe):
        return name
    known = recipes()
    if name in known:
        return known[name]
    base, plus, states = name.partition("+")
    if plus and base in known:
        return known[base].with_optimizer(states)
    raise InputError(f"unknown recipe {name!r}{nearest(base, known)}")


def convert(
    model: nn.Module, name: str | Recipe, backend: str = "auto", seed: int = 0, only: tuple[str, ...] = ()
) -> Conversion:
    """Swap the layers of ``model`` in place after a recipe and return the table of every matmul site."""
    return recipe(name).convert(model, backend=backend, seed=seed, only=only)


__all__ = ["LossScale", "Recipe", "convert", "recipe", "recipes"]
