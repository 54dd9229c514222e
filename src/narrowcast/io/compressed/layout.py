"""The compressed-tensors layout: what `transformers` and vLLM load as it is (export-reference, sections 1, 2, 5).

Loaders differ in two places. The inputs of fused experts are narrowed by vLLM, and stay wide in `transformers`. Where a
layer's input has two axes (OPT's MLP, the poolers of encoders), `transformers` takes one dynamic scale for all of it,
vLLM and we one per token.

Tied groups (q, k, v; gate, up) need one global scale under NVFP4: a pipeline quantizes them stacked, so their
`QTensor`s share it, and their inputs' amax is one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer, CacheSpec, fixed_scale
from narrowcast.io.compressed.args import CARRIER, input_args, served, served_input, weight_args
from narrowcast.io.compressed.args import refusal as refused_cast
from narrowcast.io.compressed.formats import FORMATS, name_of
from narrowcast.io.naming import Naming, naming_of, reverted
from narrowcast.io.quantized import LayerSpec, QuantizedLayer
from narrowcast.quantize import Cast
from narrowcast.scaling import TENSOR, Divided, DividedTwoLevel, ZeroPoint

METHOD = "compressed-tensors"
VERSION = "0.20.0"  # the release that this was verified against; 3, 5, 6 and 7 bits are packed densely since 2026
KV_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
_DENSE = (
    "transformers 5.24 with compressed-tensors 0.20 expects zero points unpacked: it loads them where asked to decode, "
    "quantization_config=CompressedTensorsConfig(dequantize=True); vLLM loads them as they are"
)
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class CompressedTensors:
    """compressed-tensors, for a model of ``dtype``.

    Attributes:
        dtype: of the wide tensors and of plain scales: float32, bfloat16 or float16.
        naming: how the checkpoint names what the model names otherwise.
    """

    dtype: torch.dtype = torch.bfloat16
    naming: Naming = field(default_factory=Naming)

    def __post_init__(self) -> None:
        if self.dtype not in CARRIER:
            known = ", ".join(map(str, CARRIER))
            raise InputError(f"layout {METHOD}: models of {self.dtype} are not loaded; expected {known}")

    @property
    def name(self) -> str:
        """Name of the layout."""
        return METHOD

    def for_model(self, model: nn.Module, specs: Sequence[LayerSpec], dtype: torch.dtype) -> "CompressedTensors":
        """Return the layout with the names that checkpoints of ``model`` have, for its ``dtype``."""
        return replace(self, dtype=dtype, naming=naming_of(model, specs))

    def casts(self, weight: Cast, activation: Cast | None, static: bool) -> tuple[Cast, Cast | None, bool]:
        """Return what loaders compute in place of these casts (`served`); NVFP4's inputs need a static second level."""
        weight, activation = served(weight, activation, self.dtype)
        return weight, activation, static or (activation is not None and isinstance(activation.scale, DividedTwoLevel))

    def wide(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the names, and in the shapes, that checkpoints of the model have."""
        return tensors if self.naming.model is None else reverted(self.naming.model, tensors)

    def refusal(self, spec: LayerSpec) -> str:
        """Return why the layout cannot hold such a layer, or an empty string."""
        if spec.kind not in ("Linear", "experts"):
            return f"{spec.kind} layers are not known there; keep it wide"
        if spec.transform is not None:
            return f"its input is rotated ({spec.transform}), which loaders would not do"
        if why := refused_cast(spec.weight, spec.activation, spec.static):
            return why
        for what, cast in (("weight", spec.weight), ("input", spec.activation)):
            if cast is not None and cast.tile.rows == 1 and cast.tile.cols and spec.shape[1] % cast.tile.cols:
                return f"{what} tiles of {cast.tile} do not divide its K = {spec.shape[1]}"
        chosen = FORMATS[self._format(spec)]
        if self.dtype not in chosen.dtypes:
            return f"loaders decode {chosen.name} to bfloat16, not {self.dtype}; make it bfloat16 (--dtype bfloat16)"
        if spec.kind == "experts" and chosen.name == "nvfp4-pack-quantized":
            return "transformers decodes fused experts without NVFP4's global scale, which gives wrong weights unsaid"
        return ""

    def tensors(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        """Return what is stored for ``layer``, by full tensor name."""
        spec = layer.spec
        write = FORMATS[self._format(spec)].write
        found: dict[str, Tensor] = {}
        for piece in self.naming.of(spec):
            q = layer.matrices[piece.matrix]
            whole = (piece.start, piece.stop) == (0, spec.shape[0])
            parts = write(q if whole else q.rows(piece.start, piece.stop), self.dtype) | self._input(layer)
            found |= {f"{piece.module}.{suffix}": tensor for suffix, tensor in parts.items()}
        return found

    def cache_casts(self, key: Cast | None, value: Cast | None) -> tuple[Cast | None, Cast | None]:
        """Return the casts with values divided by their scales in the model's dtype."""
        return self._carried(key), self._carried(value)

    def _carried(self, made: Cast | None) -> Cast | None:
        if made is None or not isinstance(made.scale, Divided):
            return made
        return replace(made, scale=replace(made.scale, carrier=CARRIER[self.dtype]))

    def cache_refusal(self, spec: CacheSpec) -> str:
        """Return why `kv_cache_scheme` cannot express such a cache, or an empty string."""
        if spec.ordered:
            return "channels of keys in an order of their own cannot be written there"
        for what, made in (("keys", spec.key), ("values", spec.value)):
            plain = made is not None and made.format.name == "e4m3fn" and made.tile == TENSOR
            if made is None or not (plain and spec.static and isinstance(made.scale, Divided)):
                found = "stay wide" if made is None else f"become {made}"
                return f"cached {what} {found}; there both are e4m3fn under one calibrated scale each"
        return ""

    def cache_tensors(self, layer: CacheLayer) -> dict[str, Tensor]:
        """Return the scales of cached keys and values, by full tensor name."""
        module = self.naming.module(layer.spec.module)
        parts = (("k", layer.spec.key), ("v", layer.spec.value))
        return {f"{module}.{part}_scale": fixed_scale(made, self.dtype) for part, made in parts if made is not None}

    def config(
        self, specs: Sequence[LayerSpec], wide: Sequence[str], cache: Sequence[CacheSpec] = ()
    ) -> dict[str, Any]:
        """Return config.json's ``quantization_config``: ``specs`` are narrow, the modules named in ``wide`` are not."""
        alike: dict[str, list[LayerSpec]] = {}
        for spec in specs:
            alike.setdefault(json.dumps(self._scheme(spec)), []).append(spec)
        groups, formats = {}, set()
        for number, (text, members) in enumerate(alike.items()):
            scheme = json.loads(text)
            formats.add(scheme["format"])
            names = [piece.module for spec in members for piece in self.naming.of(spec)]
            groups[f"group_{number}"] = {"targets": ["Linear"] if len(alike) == 1 else names, **scheme}
        return {
            "quant_method": METHOD,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "version": VERSION,
            "config_groups": groups,
            "ignore": self._ignored(specs, wide),
            "kv_cache_scheme": KV_SCHEME if cache else None,
            "global_compression_ratio": None,
        }

    def notes(self, specs: Sequence[LayerSpec], cache: Sequence[CacheSpec] = ()) -> list[str]:
        """Return what loaders do otherwise than the model in memory."""
        found = []
        if any(spec.kind == "experts" and spec.activation is not None for spec in specs):
            found.append("the inputs of fused experts stay wide in transformers; vLLM narrows them")
        formats = {self._format(spec) for spec in specs if spec.kind == "experts"}
        blocks = any(spec.kind == "experts" and spec.weight.tile.rows > 1 for spec in specs)
        if blocks or "mxfp8-quantized" in formats:
            found.append("transformers 5.24 loads no fused experts in FP8 with blocks or MXFP8; vLLM does")
        packed = [s for s in specs if isinstance(s.weight.scale, ZeroPoint) and self._format(s) == "pack-quantized"]
        found += [_DENSE] if packed else []
        found += self._torn(specs)
        if cache:
            found.append("cached keys and values stay wide in transformers 5.24; vLLM rounds them where it is told to")
        return found

    def _torn(self, specs: Sequence[LayerSpec]) -> list[str]:
        """Return a note where layers that vLLM loads as one differ."""
        schemes = {spec.module: json.dumps(self._scheme(spec)) for spec in specs}
        model = self.naming.model
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)] if model is not None else []
        for parts in _FUSED:
            members: dict[str, set[str]] = {}
            for name in linear:
                parent, _, last = name.rpartition(".")
                if last in parts:
                    members.setdefault(parent, set()).add(schemes.get(name, "wide"))
            torn = [parent for parent, found in members.items() if len(found) > 1]
            if torn:
                together = ", ".join(parts)
                return [f"vLLM loads {together} as one layer, but those of {torn[0]} differ; give them one scheme"]
        return []

    def _ignored(self, specs: Sequence[LayerSpec], wide: Sequence[str]) -> list[str]:
        narrow = {name for s in specs for name in (s.module, *(p.module for p in self.naming.of(s)))}
        both = [name for module in wide for name in (module, self.naming.module(module))]
        return [name for name in dict.fromkeys((*both, "lm_head")) if name not in narrow]

    def _scheme(self, spec: LayerSpec) -> dict[str, Any]:
        inputs = input_args(spec.activation, spec.static) if spec.activation is not None else None
        scheme = {"weights": weight_args(spec.weight), "input_activations": inputs, "output_activations": None}
        return {**scheme, "format": self._format(spec)}

    def _format(self, spec: LayerSpec) -> str:
        inputs = input_args(spec.activation, spec.static) if spec.activation is not None else None
        return name_of(weight_args(spec.weight), inputs)

    def _input(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        """Return the calibrated scale of the layer's input, where it has one."""
        spec = layer.spec
        if spec.activation is None or not spec.static:
            return {}
        rule = served_input(spec.activation, self.dtype).scale
        if isinstance(rule, Divided | DividedTwoLevel) and rule.fixed is not None:  # read from a checkpoint
            if isinstance(rule, DividedTwoLevel):
                return {"input_global_scale": torch.tensor([1 / rule.fixed], dtype=torch.float32)}
            return {"input_scale": torch.tensor([rule.fixed], dtype=self.dtype)}
        if layer.input_amax is None:
            raise InputError(f"{spec.name}: no calibration row met it, so its input has no scale; keep it wide")
        amax = torch.tensor([layer.input_amax])
        if isinstance(rule, DividedTwoLevel):
            return {"input_global_scale": rule.multiplier(amax, spec.activation.format)}
        return {"input_scale": rule.scale(amax, spec.activation.format).stored.to(self.dtype)}
