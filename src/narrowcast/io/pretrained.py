"""Saving a model that was quantized in memory, as a folder that `transformers` and vLLM load as it is."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError, nearest
from narrowcast.io.cached import CacheLayer, cached_in_fp8
from narrowcast.io.compressed import CompressedTensors
from narrowcast.io.compressed.args import CARRIER
from narrowcast.io.files import new_folder
from narrowcast.io.native import Native
from narrowcast.io.quantized import LayerSpec, Layout, QuantizedLayer, remembered, remembered_cache
from narrowcast.io.shards import write_shards
from narrowcast.names import dtype_name

LAYOUTS = ("compressed-tensors", "narrowcast")
_ROUTERS = ("Router", "Gating", "Gate")  # classes of routers that serving tools treat as linear layers


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        folder: where.
        layout: its name.
        layers: how many weights are narrow.
        bytes: of all tensors.
        notes: what loaders do otherwise than the model in memory.
    """

    folder: Path
    layout: str
    layers: int
    bytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.layout}, {self.layers} weights narrow, {self.bytes:,} bytes", *self.notes]
        return "; ".join(lines)


def save_pretrained(
    model: nn.Module,
    path: str | Path,
    layout: str | Layout = "compressed-tensors",
    tokenizer: Any = None,
    kv: Mapping[str, tuple[float, float]] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> Saved:
    """Write a model that `ptq` quantized in place as a folder.

    Args:
        model: of `transformers`, quantized in memory; it is not changed.
        path: the folder, which must not exist or be empty; it appears when it is complete.
        layout: ``compressed-tensors``, which `transformers` and vLLM load, or ``narrowcast``, which holds every cast;
            or a `Layout`.
        tokenizer: anything with ``save_pretrained``, or None.
        kv: largest magnitudes of cached keys and values by attention module, to be cached in FP8 by serving tools; None
            for what the recipe made of them.
        shard_bytes: most bytes of one file.

    Raises InputError where the layout cannot express a layer (named, with the remedy), where the folder holds
    something, and where it cannot be written.
    """
    layers = remembered(model)
    specs = [layer.spec for layer in layers]
    chosen = layout_for(model, specs, layout)
    cache = remembered_cache(model) if kv is None else cached_in_fp8(kv, CARRIER[_dtype(model)])
    refuse(chosen, specs)
    for one in cache:
        if why := chosen.cache_refusal(one.spec):
            raise InputError(f"layout {chosen.name} cannot hold {one.spec.module}: {why}; layout 'narrowcast' can")
    target = Path(path)
    with new_folder(target) as folder:
        total = write_shards(folder, _tensors(model, layers, cache, chosen), shard_bytes)
        of_cache = [one.spec for one in cache]
        _write_config(model, folder, chosen.config(specs, wide_modules(model, specs), of_cache))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return Saved(target, chosen.name, len(layers), total, tuple(chosen.notes(specs, of_cache)))


def layout_for(model: nn.Module, specs: list[LayerSpec], layout: str | Layout) -> Layout:
    """Return the layout called ``layout``, ready for ``model`` (whose weights may be on the meta device)."""
    if not isinstance(layout, str):
        return layout
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}{nearest(layout, LAYOUTS)}")
    if layout == "narrowcast":
        return Native()
    return CompressedTensors().for_model(model, specs, _dtype(model))


def refuse(layout: Layout, specs: Iterable[LayerSpec]) -> None:
    """Raise InputError naming the first layer that ``layout`` cannot hold."""
    why = [f"{spec.name}: {text}" for spec in specs if (text := layout.refusal(spec))]
    if why:
        more = f" ({len(why)} such layers)" if len(why) > 1 else ""
        raise InputError(f"layout {layout.name} cannot hold {why[0]}{more}; layout 'narrowcast' can")


def wide_modules(model: nn.Module, specs: Iterable[LayerSpec]) -> list[str]:
    """Return the names of the linear layers (and routers) of ``model`` that stay wide."""
    narrow = {spec.module for spec in specs}
    return [
        name
        for name, module in model.named_modules()
        if name not in narrow and (isinstance(module, nn.Linear) or type(module).__name__.endswith(_ROUTERS))
    ]


def _tensors(
    model: nn.Module, layers: tuple[QuantizedLayer, ...], cache: Sequence[CacheLayer], layout: Layout
) -> Iterator[tuple[str, Tensor]]:
    for layer in layers:
        yield from layout.tensors(layer).items()
    narrow = {layer.spec.name for layer in layers}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in narrow and name not in tied and ".input_cast." not in f".{name}"
    }
    for one in cache:
        yield from layout.cache_tensors(one).items()
    yield from layout.wide(state).items()


def _write_config(model: nn.Module, folder: Path, quantization: dict[str, Any]) -> None:
    settings = json.loads(model.config.to_json_string(use_diff=True))  # type: ignore[union-attr, operator]
    settings["architectures"] = [type(model).__name__]
    settings["dtype"] = dtype_name(_dtype(model))
    settings["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
