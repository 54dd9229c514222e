"""narrowcast's own layout: any cast, any transform, as `QTensor` holds them.

A weight ``P`` becomes ``P.codes`` (uint8, packed as `formats.packing` says), ``P.scales`` (as the scale format stores
them), ``P.tensor_scale`` (float32, where there is a second level), ``P.zeros`` (int8, zero points) and ``P.input_amax``
(float32, where the scale of the input is static). The experts of a fused weight are stacked on a first axis.
config.json lists all layers, and the casts of cached keys and values; an attention module ``A`` whose keys are cached
in another order of channels has ``A.key_order`` (int64).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer, CacheSpec
from narrowcast.io.quantized import LayerSpec, QuantizedLayer
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling.numbers import ZERO

METHOD = "narrowcast"
VERSION, WITH_CACHE = 1, 2  # readers of the first know no cache, and would run the model without it
KEY_ORDER = "key_order"
_PARTS = ("codes", "scales", "tensor_scale", "input_amax", "zeros")


class Native:
    """The layout that holds everything."""

    name = METHOD

    def for_model(self, model: nn.Module, specs: Sequence[LayerSpec], dtype: torch.dtype) -> "Native":
        """Return itself: names are the model's own, whatever the dtype."""
        return self

    def casts(self, weight: Cast, activation: Cast | None, static: bool) -> tuple[Cast, Cast | None, bool]:
        """Return the casts as they are."""
        return weight, activation, static

    def wide(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors as they are."""
        return tensors

    def refusal(self, spec: LayerSpec) -> str:
        """Return an empty string: nothing is refused."""
        return ""

    def cache_casts(self, key: Cast | None, value: Cast | None) -> tuple[Cast | None, Cast | None]:
        """Return the casts as they are."""
        return key, value

    def cache_refusal(self, spec: CacheSpec) -> str:
        """Return an empty string: nothing is refused."""
        return ""

    def tensors(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        """Return codes, scales and what else is stored of ``layer``."""
        name, first = layer.spec.name, layer.matrices[0]
        numbers = torch.stack([q.scales for q in layer.matrices])
        found = {f"{name}.codes": torch.stack([q.codes for q in layer.matrices]), f"{name}.scales": numbers}
        if first.cast.scale.numbers is ZERO:  # whole numbers: a byte each instead of a float32
            found |= {f"{name}.scales": numbers[..., :1], f"{name}.zeros": numbers[..., 1:].to(torch.int8)}
        if first.tensor_scale is not None:
            scales = [q.tensor_scale for q in layer.matrices if q.tensor_scale is not None]
            found[f"{name}.tensor_scale"] = torch.stack(scales)
        if layer.spec.static and layer.input_amax is not None:
            found[f"{name}.input_amax"] = torch.tensor(layer.input_amax)
        return {key: value.cpu().contiguous() for key, value in found.items()}

    def cache_tensors(self, layer: CacheLayer) -> dict[str, Tensor]:
        """Return the order of the keys' channels, where there is one."""
        return {} if layer.order is None else {f"{layer.spec.module}.{KEY_ORDER}": layer.order.cpu().contiguous()}

    def config(
        self, specs: Sequence[LayerSpec], wide: Sequence[str], cache: Sequence[CacheSpec] = ()
    ) -> dict[str, Any]:
        """Return the quantization_config: every layer with its casts."""
        found = {"quant_method": METHOD, "version": VERSION, "layers": [spec.to_json() for spec in specs]}
        more = {"version": WITH_CACHE, "cache": [spec.to_json() for spec in cache]}
        return {**found, **more} if cache else found

    def notes(self, specs: Sequence[LayerSpec], cache: Sequence[CacheSpec] = ()) -> list[str]:
        """Return nothing: it is read back as it was."""
        return []


def specs_from_config(settings: Mapping[str, Any], what: str) -> list[LayerSpec]:
    """Return the layers that a config.json in this layout lists; InputError where it is another one's, or newer."""
    config = settings.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(config, dict) or method != METHOD:
        raise InputError(f"model {what}: its quant_method is {method!r}, expected {METHOD!r}")
    if config.get("version") not in (VERSION, WITH_CACHE):
        known = f"{VERSION} or {WITH_CACHE}"
        raise InputError(f"model {what}: layout version {config.get('version')}, expected {known}; update narrowcast")
    try:
        return [LayerSpec.from_json(row) for row in config["layers"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"model {what}: its quantization_config lacks {error}; copy it again") from None


def cache_from_config(settings: Mapping[str, Any], what: str) -> list[CacheSpec]:
    """Return what cached keys and values become, from the config.json that `specs_from_config` took."""
    try:
        return [CacheSpec.from_json(row) for row in settings["quantization_config"].get("cache", [])]
    except (KeyError, TypeError) as error:
        raise InputError(f"model {what}: its quantization_config's cache lacks {error}; copy it again") from None


def stored_names(spec: LayerSpec) -> list[str]:
    """Return the names that tensors of ``spec`` may have."""
    return [f"{spec.name}.{part}" for part in _PARTS]


def restore(spec: LayerSpec, tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    """Return the layer of ``spec`` from its stored ``tensors``; InputError where one is missing."""
    parts = [tensors.get(name) for name in stored_names(spec)]
    codes, scales, whole, amax, zeros = parts
    if codes is None or scales is None or (spec.weight.scale.tensor_bits and whole is None):
        raise InputError(f"weight {spec.name}: its codes or scales are missing; copy the model again")
    if spec.weight.scale.numbers is ZERO:
        if zeros is None:
            raise InputError(f"weight {spec.name}: its zero points are missing; copy the model again")
        scales = torch.cat([scales, zeros.to(scales.dtype)], -1)
    padded = spec.weight.padded_shape(spec.shape, spec.name)
    matrices = tuple(
        QTensor(
            codes[i], scales[i], None if whole is None else whole[i], spec.weight, spec.shape, padded, torch.float32
        )
        for i in range(spec.count)
    )
    return QuantizedLayer(spec, matrices, None if amax is None else float(amax))
