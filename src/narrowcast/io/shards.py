"""Writing the safetensors files of a model folder, and their index, as `transformers` names them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int) -> int:
    """Write named tensors as safetensors files of at most ``limit`` bytes (or one tensor), and their index.

    One shard is in memory at a time. Returns the bytes of all tensors.
    """
    files: list[list[str]] = []
    batch: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        files.append(list(batch))
        path = folder / f"{len(files):05d}.safetensors"
        save_file(batch, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes files that only their owner can read
        batch.clear()

    for name, tensor in tensors:
        own = _own(tensor)
        if batch and size + own.nbytes > limit:
            flush()
            size = 0
        batch[name] = own
        size, total = size + own.nbytes, total + own.nbytes
    flush()
    _name_shards(folder, files, total)
    return total


def _name_shards(folder: Path, files: list[list[str]], total: int) -> None:
    if len(files) == 1:
        (folder / "00001.safetensors").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / f"{number:05d}.safetensors").rename(folder / final)
        places |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _own(tensor: Tensor) -> Tensor:
    """Return a copy in memory of its own, as safetensors wants it: a scale may be shared by several weights."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
