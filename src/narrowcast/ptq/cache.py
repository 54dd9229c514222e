"""The cache of a model that is quantized block by block: what is stored of keys and values counts from then on.

A block's cache is settled once its weights are quantized: calibrated scales come from the keys and values that the
quantized block makes, and so does the order of the keys' channels (by falling largest magnitude, behind the rotary
embedding). What follows the block then sees what the cache gives back.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer
from narrowcast.ptq.blocks import Forward
from narrowcast.ptq.kvcache import CacheCasts, attention_modules, narrow_cache
from narrowcast.ptq.recipe import CacheScheme
from narrowcast.quantize import Cast
from narrowcast.scaling import Divided


class LiveCache:
    """Lets the attention of a model see keys and values as a cache would give them back, module by module.

    Until a module is settled its keys and values stay wide. Raises InputError for a model whose attention cannot be set
    and for one that has no attention modules.
    """

    def __init__(self, model: nn.Module, scheme: CacheScheme) -> None:
        self._scheme = scheme
        self._modules = attention_modules(model)
        if not self._modules:
            raise InputError(f"{type(model).__name__} has no attention modules, so no cache of keys and values")
        self._casts: dict[str, tuple[Cast | None, Cast | None]] = {}
        self._orders: dict[str, Tensor] = {}
        self._peaks: dict[str, tuple[Tensor, Tensor]] | None = None
        narrow_cache(model, CacheCasts(own=self._casts, order=self._orders), self._note)

    def settle(self, prefix: str, runs: Sequence[Forward]) -> list[CacheLayer]:
        """Settle the modules whose names begin with ``prefix`` and return what became of them.

        ``runs`` run these modules on calibration batches. Raises InputError where the scheme is calibrated and no run
        met a module, and where keys or values are not finite.
        """
        names = [name for name in self._modules if name.startswith(prefix)]
        peaks = self._watched(runs) if self._scheme.needs_calibration else {}
        found = [self._settled(name, peaks.get(name)) for name in names]
        for layer in found:
            self._casts[layer.spec.module] = layer.spec.key, layer.spec.value
            if layer.order is not None:
                self._orders[layer.spec.module] = layer.order
        return found

    def _settled(self, name: str, peaks: tuple[Tensor, Tensor] | None) -> CacheLayer:
        scheme, spec = self._scheme, self._scheme.spec(name)
        if not scheme.needs_calibration:
            return CacheLayer(spec)
        if peaks is None:
            raise InputError(f"{name}: no calibration batch met its keys and values; take a recipe with a wide cache")
        keys, values = peaks
        if not (keys.isfinite().all() and values.isfinite().all()):
            raise InputError(f"{name}: its keys or values are not finite on the calibration data")
        if scheme.static:
            spec = replace(spec, key=_fixed(spec.key, keys), value=_fixed(spec.value, values))
        order = keys.argsort(dim=1, descending=True, stable=True).cpu() if scheme.ordered else None
        return CacheLayer(spec, order)

    def _watched(self, runs: Sequence[Forward]) -> dict[str, tuple[Tensor, Tensor]]:
        self._peaks = {}
        for run in runs:
            run()
        found, self._peaks = self._peaks, None
        return found

    def _note(self, name: str, key: Tensor, value: Tensor) -> None:
        """Take down the largest magnitudes of each channel of each head ``[G, D]``, while there is someone watching."""
        if self._peaks is None:
            return
        found = tuple(x.detach().float().abs().amax((0, 2)) for x in (key, value))
        old = self._peaks.get(name, found)
        self._peaks[name] = torch.maximum(found[0], old[0]), torch.maximum(found[1], old[1])


def _fixed(made: Cast | None, peaks: Tensor) -> Cast | None:
    """Return the cast with its scale fixed for values up to the largest of ``peaks``."""
    if made is None:
        return None
    assert isinstance(made.scale, Divided)
    return replace(made, scale=made.scale.made_for(float(peaks.amax()), made.format))


def token_bytes(model: nn.Module, scheme: CacheScheme | None, itemsize: int) -> tuple[float, float] | None:
    """Return the bytes that all layers cache for one token, (wide, under ``scheme``); None where they are not known.

    Scales that are stored once a tensor are not counted: they do not grow with the text.

    Args:
        model: may be on the meta device.
        scheme: None leaves the cache wide.
        itemsize: bytes of a wide number.
    """
    widths = [_heads(m, getattr(model, "config", None)) for m in attention_modules(model).values()]
    if not widths or None in widths or not getattr(model, "can_generate", lambda: False)():
        return None
    before = after = 0.0
    for heads, width in (w for w in widths if w is not None):
        before += 2 * heads * width * itemsize
        for made in (scheme.key, scheme.value) if scheme is not None else (None, None):
            after += heads * width * itemsize if made is None else _bytes(made, heads, width)
    return before, after


def _bytes(made: Cast, heads: int, width: int) -> float:
    shape = made.padded_shape((heads, width), "keys and values")
    scales = 0 if made.tile.is_tensor else made.scale.total_bits(made.tile.count(shape))
    return (shape[0] * shape[1] * made.format.bits + scales) / 8


def _heads(module: nn.Module, config: Any) -> tuple[int, int] | None:
    """Return (key heads, channels of one) of an attention module."""
    queries = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(queries, int) or not isinstance(hidden, int) or hasattr(config, "kv_lora_rank"):
        return None  # latent attention caches something else
    width = int(getattr(module, "head_dim", 0) or getattr(config, "head_dim", 0) or hidden // queries)
    projection = getattr(module, "k_proj", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features // width, width
    return int(getattr(config, "num_key_value_heads", None) or queries), width
