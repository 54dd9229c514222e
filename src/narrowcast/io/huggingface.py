"""Hugging Face model folders: read with every check a person would want, written without our buffers.

Only safetensors weights are read: a pickle can run code, so it is refused unread. Nothing is ever downloaded, and no
code of a model folder is ever run.
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import nn

from narrowcast.errors import InputError
from narrowcast.io.files import write_atomic
from narrowcast.io.weights import read_json, weight_files
from narrowcast.models import from_config


def load_model(path: Path, seed: int = 0, auto: str = "AutoModelForCausalLM") -> tuple[nn.Module, Path | None]:
    """Return (float32 model, path of its tokenizer.json or None); a causal language model unless ``auto`` says else.

    ``path`` is a model folder (config.json and safetensors: the weights are loaded) or a bare config file (weights
    are drawn from ``seed``). ``auto`` names the class of `transformers` that makes the model. Raises InputError for
    everything that is missing, truncated, foreign or not finite.
    """
    if not path.exists():
        raise InputError(f"model {path}: no such file or folder; give a model folder or a config.json")
    if path.is_file():
        return _built(path, seed, auto), None
    if not (path / "config.json").is_file():
        raise InputError(f"model {path}: has no config.json; expected a Hugging Face model folder")
    files = weight_files(path)
    model = _built(path / "config.json", seed, auto)
    _load_weights(model, files, path)
    tokenizer = path / "tokenizer.json"
    return model, tokenizer if tokenizer.is_file() else None


def _built(path: Path, seed: int, auto: str) -> nn.Module:
    """Return the model that the config file ``path`` describes, with weights drawn from ``seed``."""
    from transformers import AutoConfig

    settings = read_json(path, "a JSON config")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds a {type(settings).__name__}, expected a JSON object")
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str):
        raise InputError(f"{path}: has no model_type; expected the config.json of a Hugging Face model")
    try:
        return from_config(AutoConfig.for_model(kind, **settings), seed, auto)
    except Exception as error:  # each model class refuses its settings in its own way
        why = " ".join(str(error).split())[:160]
        what = "language model" if auto == "AutoModelForCausalLM" else f"{auto.removeprefix('AutoModel')} model".strip()
        raise InputError(f"{path}: transformers makes no {what} of model_type {kind!r} ({why})") from None


def _load_weights(model: nn.Module, files: list[Path], folder: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                state.update({name: opened.get_tensor(name).float() for name in opened.keys()})  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{file}: truncated or not safetensors ({error}); copy it again") from None
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"model {folder}: tensor {name} holds NaN or infinite values; the weights are damaged")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        misfit = str(error).splitlines()[-1].strip()
        raise InputError(f"model {folder}: the weights do not fit config.json: {misfit}") from None
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in missing if name not in tied]
    unexpected = [name for name in unexpected if not name.endswith("position_ids")]  # a buffer of older versions
    if missing or unexpected:
        wrong = f"lacks {missing[0]}" if missing else f"holds unknown {unexpected[0]}"
        count = len(missing) + len(unexpected)
        raise InputError(f"model {folder}: the weights do not fit config.json: {wrong} ({count} such tensors)")
    model.tie_weights()  # type: ignore[operator]


def save_model(model: nn.Module, tokenizer: str, folder: Path) -> None:
    """Write ``model`` as a Hugging Face folder: float32 weights, config, tokenizer. Casts' own state is left out."""
    names = {name for name, _ in model.named_parameters()}
    state = {n: t.detach().contiguous() for n, t in model.state_dict().items() if n in names}
    write_atomic(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    write_atomic(folder / "config.json", model.config.to_json_string().encode())  # type: ignore[union-attr, operator]
    write_atomic(folder / "tokenizer.json", tokenizer.encode())
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_atomic(folder / "tokenizer_config.json", json.dumps(fast).encode())
