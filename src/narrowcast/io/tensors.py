"""Safetensors files, one tensor in memory at a time: read with suspicion, written so that nothing is lost.

A file is an 8-byte header length, a JSON header (dtype, shape and place of each tensor, and ``__metadata__``), and the
tensors' bytes. Pickles and zip archives (PyTorch's own checkpoints) are refused unread: unpickling can run code.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.files import replacing

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it (a pickle inside)"),
    (b"\x80", "a pickle"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"{", "a JSON text"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one safetensors file; iterating yields (name, tensor) in the order of their names.

    Attributes:
        path: of the file.
        names: of its tensors.
        metadata: what the header says of the file, text by text.
    """

    path: Path
    names: tuple[str, ...]
    metadata: dict[str, str]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        with safetensors.safe_open(self.path, framework="pt") as opened:
            for name in self.names:
                try:
                    yield name, opened.get_tensor(name)
                except (safetensors.SafetensorError, AttributeError, KeyError) as error:
                    raise InputError(f"{self.path}: tensor {name} cannot be read as torch tensor ({error})") from None

    def __len__(self) -> int:
        return len(self.names)


def open_tensors(path: Path) -> TensorFile:
    """Return the tensors of ``path``.

    Raises InputError where it is missing, a folder, another kind of file (which is named), truncated, or holds nothing.
    """
    if path.is_dir():
        found = sorted(p.name for p in path.glob("*.safetensors"))
        remedy = f"give one file of it, e.g. {path / found[0]}" if found else "it holds no .safetensors either"
        raise InputError(f"{path}: a folder, expected a safetensors file; {remedy}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a safetensors file")
    refuse_foreign(path)
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            names, metadata = tuple(sorted(opened.keys())), dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not safetensors ({error}); copy it again") from None
    if not names:
        raise InputError(f"{path}: holds no tensors")
    return TensorFile(path, names, metadata)


def refuse_foreign(path: Path) -> None:
    """Raise InputError where the first bytes of ``path`` say that it is a pickle, an archive, or another known kind."""
    with path.open("rb") as file:
        start = file.read(32)
    for magic, kind in _FOREIGN:
        if start.startswith(magic) and start[8:9] != b"{":  # a header of 128 bytes begins like a pickle
            raise InputError(f"{path}: {kind}, refused unread; expected safetensors (safetensors.torch.save_file)")


def write_like(source: TensorFile, path: Path, tensors: Iterator[Tensor], metadata: dict[str, str]) -> None:
    """Replace ``path`` by a file like ``source`` with other values and ``metadata`` added to what it had.

    ``tensors`` come in the order of ``source.names``, with the dtype and shape of their namesakes; one at a time is in
    memory. Raises InputError where it cannot be written; then nothing at ``path`` has changed.
    """
    header = _header(source, metadata)
    with replacing(path) as part, part.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            out.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _header(source: TensorFile, metadata: dict[str, str]) -> bytes:
    """Return the JSON header, padded with spaces to a multiple of 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {**source.metadata, **metadata}}
    place = 0
    with source.path.open("rb") as file:
        old = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name in source.names:
        begin, end = old[name]["data_offsets"]
        table[name] = {**old[name], "data_offsets": [place, place + end - begin]}
        place += end - begin
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)
