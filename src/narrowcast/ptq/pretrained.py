"""Loading a quantized checkpoint of any known layout as a Hugging Face model that runs in narrowcast's casts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.formats import format
from narrowcast.io import load_model
from narrowcast.io.cached import CacheLayer, CacheSpec
from narrowcast.io.compressed.args import CARRIER
from narrowcast.io.foreign import Checkpoint, ReadWeight, open_checkpoint
from narrowcast.io.naming import checkpoint_name
from narrowcast.io.native import METHOD
from narrowcast.io.quantized import LayerSpec, QuantizedLayer, remember
from narrowcast.models.quiet import quiet
from narrowcast.ptq.inputs import InputCast, attach
from narrowcast.ptq.kvcache import narrow_as
from narrowcast.ptq.load import load_quantized
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import TENSOR, Divided
from narrowcast.transforms import Hadamard


def load(path: str | Path, dtype: torch.dtype | None = None, kv: bool = True) -> nn.Module:
    """Return the model in a folder, in evaluation mode: weights as their codes decode, inputs through their casts.

    Args:
        path: folder with config.json and safetensors, quantized in any layout that `describe` knows, or not at all.
        dtype: of the model; None for what its config says.
        kv: whether attention sees keys and values as the checkpoint's cache would give them back.

    The arithmetic is emulated. Weights are decoded in float32 and rounded to ``dtype``. The inputs of fused experts
    stay wide, as in `transformers`. The model carries its quantized layers, so that `save_pretrained` can write it in
    another layout; weights whose columns are in activation order, and fused experts, are plain numbers there.
    Raises InputError for everything that is missing, truncated, foreign, or does not fit config.json.
    """
    checkpoint = open_checkpoint(Path(path))
    if checkpoint.reader is not None and checkpoint.reader.layout == METHOD:
        return _native(checkpoint, dtype or checkpoint.dtype, kv)
    state: dict[str, Tensor] = {}
    read: dict[str, ReadWeight] = {}
    chosen = dtype or checkpoint.dtype
    for name, weight in checkpoint.weights():
        values = weight.values()
        if not values.isfinite().all():
            raise InputError(
                f"model {checkpoint.folder}: weight {name} decodes to NaN or infinite values; it is damaged"
            )
        state[f"{name}.weight"] = values.to(chosen)
        read[name] = replace(weight, dense=None)
    for name in checkpoint.wide:
        state[name] = checkpoint.stored[name].read()
    model = _filled(checkpoint, state, chosen)
    layers = []
    for name, module in _linear(model):
        found = read.get(name) or read.get(checkpoint_name(model, name))
        if found is not None and (found.activation is not None or found.transform is not None):
            attach(module, InputCast(found.activation, found.transform))
        if found is not None and found.quantized is not None:
            layers.append(_layer(name, found.quantized, found.activation, found.transform))
    cache = _cache(checkpoint, model) if kv else []
    if cache:
        narrow_as(model, cache)
    remember(model, layers, cache)
    return model


def _cache(checkpoint: Checkpoint, model: nn.Module) -> list[CacheLayer]:
    """Return the cache of each attention module: FP8 under its scales, 1 where one is missing."""
    carrier = CARRIER[checkpoint.dtype]
    unit = Cast(format("e4m3fn"), TENSOR, Divided(carrier, 1.0))
    found: dict[str, dict[str, Cast]] = {}
    for name in checkpoint.beside:
        holder, _, last = name.rpartition(".")
        scale = checkpoint.stored[name].read().float().flatten()
        if len(scale) != 1:
            raise InputError(f"model {checkpoint.folder}: {name} holds {len(scale)} scales, one a head; pass kv=False")
        made = Cast(format("e4m3fn"), TENSOR, Divided(carrier, float(scale)))
        module = re.sub(r"(\.[kv]_proj)?(\.attn)?$", "", holder)
        for part in "kv" if last == "kv_scale" else last[0]:
            found.setdefault(module, {})[part] = made
    names = {checkpoint_name(model, n): n for n, m in model.named_modules() if hasattr(m, "k_proj")} if found else {}
    parts = {names.get(module, module): one for module, one in found.items()}
    specs = [CacheSpec(m, one.get("k", unit), one.get("v", unit), static=True) for m, one in parts.items()]
    return [CacheLayer(spec) for spec in specs]


def _linear(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _layer(module: str, weight: QTensor, activation: Cast | None, transform: Hadamard | None) -> QuantizedLayer:
    """Return what a checkpoint says of a linear layer, for whoever saves the model again."""
    shape = (weight.shape[0], weight.shape[1])
    fixed = getattr(activation.scale, "fixed", None) if activation is not None else None
    spec = LayerSpec(
        f"{module}.weight",
        module,
        "Linear",
        shape,
        1,
        shape,
        False,
        weight.cast,
        activation,
        transform,
        static=fixed is not None,
    )
    return QuantizedLayer(spec, (weight,))


def _native(checkpoint: Checkpoint, dtype: torch.dtype, kv: bool) -> nn.Module:
    """Return a model of our own layout; buffers (rotary frequencies) keep their dtype, as `transformers` has it."""
    model, _ = load_quantized(checkpoint.folder, kv)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def open_model(path: Path, auto: str = "AutoModelForCausalLM") -> tuple[nn.Module, Path | None]:
    """Return (float32 model, path of its tokenizer.json or None) of a model folder, quantized or not.

    As `io.load_model` for plain folders and bare configs, which are checked as there; ``auto`` names the class of
    `transformers` for those. A quantized model narrows its inputs.
    """
    if not (path / "config.json").is_file() or open_checkpoint(path).reader is None:
        return load_model(path, auto=auto)
    tokenizer = path / "tokenizer.json"
    return load(path, torch.float32), tokenizer if tokenizer.is_file() else None


def describe(path: str | Path) -> str:
    """Return one line on a model folder: layout, formats, groups, what stays wide. Only headers are read."""
    return open_checkpoint(Path(path)).describe()


def _filled(checkpoint: Checkpoint, state: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """Return the model that config.json describes, with the weights in ``state``."""
    with quiet():
        import transformers

        settings = {k: v for k, v in checkpoint.settings.items() if k != "quantization_config"}
        kind = settings.pop("model_type", None)
        names = settings.get("architectures") or []
        made: Any = getattr(transformers, names[0], None) if names else transformers.AutoModelForCausalLM
        if made is None:
            raise InputError(f"model {checkpoint.folder}: transformers has no class {names[0]!r}; its code is not run")
        try:
            config = transformers.AutoConfig.for_model(kind, **settings)
            model, info = made.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
        except Exception as error:  # each model class refuses its settings and weights in its own way
            why = " ".join(str(error).split())[:200]
            raise InputError(f"model {checkpoint.folder}: transformers makes no model of it ({why})") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            first, count = sorted(map(str, info[what]))[0], len(info[what])
            raise InputError(
                f"model {checkpoint.folder}: the weights do not fit config.json: "
                f"{what.removesuffix('_keys')} {first} ({count} such tensors)"
            )
    filled: nn.Module = model
    return filled.eval()
