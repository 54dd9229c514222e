"""Reading the values of narrowcast's own layout; `ptq.load` runs such a model with its inputs' casts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.io.native import METHOD, cache_from_config, restore, specs_from_config
from narrowcast.io.quantized import LayerSpec, QuantizedLayer

_SUFFIXES = ("codes", "scales", "tensor_scale", "input_amax", "zeros")


def open_native(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read a checkpoint of our own, or None where it is none."""
    if config.get("quant_method") != METHOD:
        return None
    specs = {spec.name: spec for spec in specs_from_config({"quantization_config": config}, "checkpoint")}
    casts = dict.fromkeys(_described(spec) for spec in specs.values())
    cached = dict.fromkeys(s.words for s in cache_from_config({"quantization_config": config}, "checkpoint"))
    return Reader("narrowcast", "; ".join([*casts, *cached]), _SUFFIXES, ("codes", "scales"), _reader(specs))


def _described(spec: LayerSpec) -> str:
    text = str(spec.weight) + (f", inputs {spec.activation}" if spec.activation else ", inputs wide")
    return text + (f", rotated by {spec.transform}" if spec.transform else "")


def _reader(specs: dict[str, LayerSpec]) -> Callable[[str, dict[str, Tensor]], ReadWeight]:
    def read(name: str, parts: dict[str, Tensor]) -> ReadWeight:
        spec = specs[name]
        layer = restore(spec, {f"{name}.{suffix}": tensor for suffix, tensor in parts.items()})
        return ReadWeight(dense=_parameter(layer), transform=spec.transform, parameter=name)

    return read


def _parameter(layer: QuantizedLayer) -> Tensor:
    """Return the values as the model's parameter holds them, float32."""
    spec = layer.spec
    values = [q.dequantize() for q in layer.matrices]
    turned = [v.mT if spec.transposed else v for v in values]
    whole = torch.stack(turned) if spec.kind == "experts" else turned[0]
    return whole.reshape(spec.stored)
