"""Writing a quantized model folder as a plain one, which every tool loads."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.files import new_folder
from narrowcast.io.foreign.checkpoint import Checkpoint
from narrowcast.io.shards import write_shards
from narrowcast.names import dtype_name

_LEFT_OUT = {"config.json", "hf_quant_config.json", "report.json", "model.safetensors.index.json"}


def write_dense(
    checkpoint: Checkpoint,
    out: Path,
    dtype: torch.dtype | None = None,
    note: Callable[[str], None] = lambda name: None,
    shard_bytes: int = 5_000_000_000,
) -> int:
    """Write ``checkpoint`` to the new folder ``out`` with every weight dequantized; return the bytes of its tensors.

    Args:
        checkpoint: a quantized one.
        out: the folder, which must not exist or be empty.
        dtype: of the dequantized weights; None for the model's.
        note: called with each tensor's name.
        shard_bytes: most bytes of one file.

    Other files of the folder (tokenizer, templates) come along, config.json without its quantization. Inputs that the
    quantized model narrows are wide in the plain one.
    Raises InputError for a checkpoint that is not quantized, or stored rotated, and where it cannot be written.
    """
    if checkpoint.reader is None:
        raise InputError(f"model {checkpoint.folder}: is not quantized; there is nothing to dequantize")
    chosen = dtype or checkpoint.dtype

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.dense(chosen):
            note(name)
            yield name, tensor

    settings = {key: value for key, value in checkpoint.settings.items() if key != "quantization_config"}
    with new_folder(out) as folder:
        total = write_shards(folder, tensors(), shard_bytes)
        for path in sorted(checkpoint.folder.iterdir()):
            if path.is_file() and path.suffix in (".json", ".txt", ".jinja", ".model") and path.name not in _LEFT_OUT:
                shutil.copyfile(path, folder / path.name)
        settings["dtype"] = dtype_name(chosen)
        (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return total
