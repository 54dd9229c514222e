"""Read a model in narrowcast's own layout back: weights decoded, inputs narrowed as they were."""

from pathlib import Path

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer, CacheSpec
from narrowcast.io.hollow import hollow_model
from narrowcast.io.native import KEY_ORDER, cache_from_config, restore, specs_from_config, stored_names
from narrowcast.io.quantized import QuantizedLayer, remember
from narrowcast.io.weights import Stored, folder_weights, read_json
from narrowcast.models.hollow import Places
from narrowcast.ptq.inputs import InputCast, attach
from narrowcast.ptq.kvcache import narrow_as


@torch.no_grad()
def load_quantized(folder: Path, kv: bool = True) -> tuple[nn.Module, Path | None]:
    """Return (the model in float32, path of its tokenizer.json or None).

    Every weight holds the values that its codes decode to, every narrowed module casts its input, and unless ``kv`` is
    False attention sees keys and values as the cache gives them back. The model carries its quantized layers. Raises
    InputError for another layout and for what is missing, truncated or foreign.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model {folder}: has no config.json; expected a folder that 'narrowcast quantize' wrote")
    settings = read_json(folder / "config.json", "a JSON config")
    specs = specs_from_config(settings, str(folder))
    weights = folder_weights(folder)
    cache = [_cached(spec, weights) for spec in cache_from_config(settings, str(folder))]
    model = hollow_model(folder / "config.json", settings)
    if model is None:
        kind = settings.get("model_type")
        raise InputError(f"model {folder}: transformers does not know model_type {kind!r}, so it cannot be run")
    places = Places(model)
    buffers = dict(model.named_buffers())
    used = {name for spec in specs for name in stored_names(spec)}
    used |= {f"{one.spec.module}.{KEY_ORDER}" for one in cache}
    for name in weights.keys() - used:
        canonical = places.canonical(name)
        if canonical is not None:
            places.fill(canonical, weights[name].read().float())
        elif name in buffers:
            buffers[name].copy_(weights[name].read())
        else:
            raise InputError(f"model {folder}: holds unknown {name}, which the config does not describe")
    layers = []
    for spec in specs:
        layer = restore(spec, {n: weights[n].read() for n in stored_names(spec) if n in weights})
        places.fill(spec.name, _values(layer))
        _see(model.get_submodule(spec.module), layer)
        layers.append(layer)
    lost = [name for name in places.names if places.value(name).is_meta]
    if lost:
        raise InputError(f"model {folder}: lacks {lost[0]} ({len(lost)} such tensors); copy it again")
    if kv and cache:
        narrow_as(model, cache)
    remember(model, layers, cache if kv else ())
    tokenizer = folder / "tokenizer.json"
    return model, tokenizer if tokenizer.is_file() else None


def _cached(spec: CacheSpec, weights: dict[str, Stored]) -> CacheLayer:
    name = f"{spec.module}.{KEY_ORDER}"
    if spec.ordered and name not in weights:
        raise InputError(f"{spec.module}: the order of its keys' channels is missing; copy the model again")
    return CacheLayer(spec, weights[name].read() if spec.ordered else None)


def _values(layer: QuantizedLayer) -> Tensor:
    """Return the parameter's values, in the shape that the model holds it."""
    matrices = [q.dequantize() for q in layer.matrices]
    turned = [m.mT for m in matrices] if layer.spec.transposed else matrices
    whole = torch.stack(list(turned)) if layer.spec.kind == "experts" else turned[0]
    return whole.reshape(layer.spec.stored).contiguous()


def _see(module: nn.Module, layer: QuantizedLayer) -> None:
    spec = layer.spec
    if (spec.activation is None and spec.transform is None) or hasattr(module, "input_cast"):
        return
    amax = torch.tensor(layer.input_amax) if spec.static and layer.input_amax is not None else None
    attach(module, InputCast(spec.activation, spec.transform, amax))
