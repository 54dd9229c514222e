"""A model folder, quantized or not: opened by its headers, read one weight at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.io.foreign.table import reader_of
from narrowcast.io.weights import Stored, folder_weights, read_json
from narrowcast.names import dtype_name

_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int8, torch.int32)
_BESIDE = ("k_scale", "v_scale", "q_scale", "kv_scale", "key_order")  # of cached keys and values


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model folder.

    Attributes:
        folder: where it is.
        settings: its config.json.
        reader: how its quantized weights are read; None where it has none.
        stored: every tensor by name, unread.
        parts: the tensors that stand for quantized weights: by module, by suffix, their full names.
    """

    folder: Path
    settings: dict[str, Any]
    reader: Reader | None
    stored: dict[str, Stored]
    parts: dict[str, dict[str, str]]

    @property
    def beside(self) -> list[str]:
        """Names of the scales of cached keys and values."""
        return [name for name in self.stored if name.rpartition(".")[2] in ("k_scale", "v_scale", "kv_scale")]

    @property
    def wide(self) -> list[str]:
        """Names of the tensors that are stored as they are."""
        taken = {name for parts in self.parts.values() for name in parts.values()}
        return [name for name in self.stored if name not in taken and name.rpartition(".")[2] not in _BESIDE]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model, as its config says; float32 where it does not."""
        named = self.settings.get("dtype") or self.settings.get("torch_dtype") or "float32"
        found = getattr(torch, str(named).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise InputError(f"{self.folder / 'config.json'}: dtype {named!r}, expected float32, bfloat16 or float16")
        return found

    def describe(self) -> str:
        """Return one line: layout, formats, groups, what stays wide."""
        wide = [self.stored[name] for name in self.wide]
        dtypes = ", ".join(sorted({dtype_name(s.dtype) for s in wide})) or "none"
        rest = f"{len(wide)} tensors wide ({dtypes}, {_megabytes(wide)})"
        if self.reader is None:
            return f"not quantized: {rest}"
        narrow = [self.stored[name] for parts in self.parts.values() for name in parts.values()]
        return f"{self.reader.layout}: {self.reader.formats}; {len(self.parts)} weights ({_megabytes(narrow)}), {rest}"

    def weights(self) -> Iterator[tuple[str, ReadWeight]]:
        """Read the quantized weights, one at a time: (name that its tensors have, weight)."""
        for module, parts in self.parts.items():
            assert self.reader is not None
            yield module, self.reader.read(module, {suffix: self.stored[name].read() for suffix, name in parts.items()})

    def dense(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Read every parameter as plain numbers, one at a time: (name, values).

        Args:
            dtype: of the dequantized weights; None for float32. Rotated weights (of our own layout) are refused: they
                mean nothing without the rotation of their inputs.
        """
        for name, weight in self.weights():
            if weight.transform is not None:
                raise InputError(
                    f"{self.folder}: weight {name} is stored rotated ({weight.transform}); run the model with nc.load"
                )
            yield weight.parameter or f"{name}.weight", weight.values().to(dtype or torch.float32)
        for name in self.wide:
            yield name, self.stored[name].read()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder``; only config.json and the headers are read.

    Raises InputError for a folder that is no model, for weights that are missing, truncated, or refused unread
    (pickles, zip archives), and for a layout that is not known.
    """
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "no such folder"
        raise InputError(f"model {folder}: {found}; expected a Hugging Face model folder")
    settings = read_json(folder / "config.json", "a JSON config")
    if not isinstance(settings, dict):
        raise InputError(f"{folder / 'config.json'}: holds a {type(settings).__name__}, expected a JSON object")
    stored = folder_weights(folder)
    config = _quantization(folder, settings)
    reader = reader_of(config, frozenset(stored), str(folder)) if config is not None else None
    parts = reader.parts(stored) if reader is not None else {}
    checkpoint = Checkpoint(folder, settings, reader, stored, parts)
    if reader is not None and not parts:
        raise InputError(f"model {folder}: says {reader.layout}, but holds no tensors {', '.join(reader.required)}")
    for name in checkpoint.wide:
        if stored[name].dtype in _NARROW and name.endswith(("weight", "qweight", "weight_packed")):
            raise InputError(f"model {folder}: {name} holds codes ({stored[name].dtype}) without scales; copy it again")
    return checkpoint


def _quantization(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization_config of a model folder, wherever it stands, or None."""
    nested = settings.get("text_config")
    for holder in (settings, nested if isinstance(nested, dict) else {}):
        found = holder.get("quantization_config")
        if isinstance(found, dict):
            return found
    beside = folder / "hf_quant_config.json"
    if beside.is_file():
        found = read_json(beside, "ModelOpt's JSON config")
        if isinstance(found, dict) and isinstance(found.get("quantization"), dict):
            return dict(found["quantization"])
    return None


def _megabytes(stored: list[Stored]) -> str:
    return f"{sum(s.nbytes for s in stored) / 1e6:.3g} MB"
