"""A recipe in the conventions of the tools that will load its checkpoint."""

from dataclasses import replace

import torch

from narrowcast.io.compressed import CompressedTensors
from narrowcast.io.quantized import Layout
from narrowcast.ptq.recipe import PtqRecipe, Scheme


def served(recipe: PtqRecipe, dtype: torch.dtype) -> PtqRecipe:
    """Return ``recipe`` with the casts that `transformers` and vLLM compute for a model of ``dtype``.

    A model quantized with it and its compressed-tensors checkpoint loaded by `transformers` agree bit for bit (see
    `io.compressed.served`); NVFP4 inputs get the static second level that those tools expect, so that calibration is
    needed. Schemes that compressed-tensors cannot express keep what it lacks; saving says so.
    """
    return in_layout(recipe, CompressedTensors(dtype))


def in_layout(recipe: PtqRecipe, layout: Layout) -> PtqRecipe:
    """Return ``recipe`` with the casts that the loaders of ``layout`` compute in place of its own."""
    scheme = recipe.scheme
    weight, activation, static = layout.casts(scheme.weight, scheme.activation, scheme.static)
    kv = recipe.kv
    if kv is not None:
        key, value = layout.cache_casts(kv.key, kv.value)
        kv = replace(kv, key=key, value=value)
    return replace(recipe, scheme=Scheme(weight, activation, scheme.transform, static), kv=kv)
