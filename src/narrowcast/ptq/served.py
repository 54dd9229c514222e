"""A recipe in the conventions of the tools that will load its checkpoint."""

from dataclasses import replace

import torch

from narrowcast.io.compressed import served as served_casts
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.scaling import DividedTwoLevel


def served(recipe: PtqRecipe, dtype: torch.dtype) -> PtqRecipe:
    """Return ``recipe`` with the casts that `transformers` and vLLM compute for a model of ``dtype``.

    A model quantized with it and its compressed-tensors checkpoint loaded by `transformers` agree bit for bit (see
    `io.compressed.served`); NVFP4 inputs get the static second level that those tools expect, so that calibration is
    needed. Schemes that compressed-tensors cannot express keep what it lacks; saving says so.
    """
    scheme = recipe.scheme
    weight, activation = served_casts(scheme.weight, scheme.activation, dtype)
    static = scheme.static or (activation is not None and isinstance(activation.scale, DividedTwoLevel))
    return replace(recipe, scheme=Scheme(weight, activation, scheme.transform, static))
