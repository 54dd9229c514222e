"""What the cached keys and values of a model reach, for the scales that serving tools cache them under."""

from collections.abc import Iterable
from inspect import signature

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.models.quiet import quiet


@torch.no_grad()
def kv_peaks(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Return the largest magnitudes of the cached keys (after their rotary embedding) and values, by attention module.

    `save_pretrained(model, path, kv=kv_peaks(model, batches))` stores them as scales.

    Args:
        model: a causal language model of `transformers`.
        batches: int64 token ids ``[batch, length]``.

    Raises InputError where there are no batches, and for a model whose attention keeps no cache of keys and values.
    """
    with quiet():
        from transformers import DynamicCache
    takes = signature(model.forward).parameters
    argument = "cache" if "cache" in takes else "past_key_values"  # transformers 5.24 renamed it
    peaks: dict[int, tuple[float, float]] = {}
    for batch in batches:
        cache = DynamicCache()  # without a config, so that no layer drops what left its window
        model(input_ids=batch, use_cache=True, **{argument: cache})
        for number, layer in enumerate(cache.layers):
            keys, values = float(layer.keys.abs().max()), float(layer.values.abs().max())
            before = peaks.get(number, (0.0, 0.0))
            peaks[number] = max(before[0], keys), max(before[1], values)
    if not peaks:
        raise InputError("keys and values: no calibration batches; give some token ids")
    named = [(name, m) for name, m in model.named_modules() if hasattr(m, "layer_idx") and hasattr(m, "k_proj")]
    modules = {getattr(m, "layer_idx"): name for name, m in named}  # noqa: B009 - its type is not known
    if peaks.keys() - modules.keys():
        raise InputError("keys and values: the model's attention layers have no numbers, so their scales have no names")
    return {modules[number]: found for number, found in peaks.items()}
