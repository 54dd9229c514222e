"""The weights of a model folder, seen by their headers alone and read one tensor at a time.

Nothing is mapped: a tensor is read into memory of its own when it is asked for, and nothing else is. So the memory of
whoever works through a folder is that of the tensors at hand, whatever the size of the files.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.tensors import refuse_foreign

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_PIECE = 1 << 22  # bytes, a multiple of every element's size
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "F8_E8M0": torch.float8_e8m0fnu, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor in a file.

    Attributes:
        file: the safetensors file.
        dtype, shape: of the tensor.
        start: offset of its bytes in the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return the tensor, read from the file into memory of its own."""
        return self._taken(self.shape, [(0, self.nbytes)])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` of a matrix."""
        size = self.nbytes // max(self.shape[0], 1)
        return self._taken((stop - start, *self.shape[1:]), [(start * size, (stop - start) * size)])

    def picked(self, places: list[int]) -> Tensor:
        """Return the rows at ``places`` of a matrix."""
        size = self.nbytes // max(self.shape[0], 1)
        return self._taken((len(places), *self.shape[1:]), [(place * size, size) for place in places])

    def pieces(self) -> Iterator[Tensor]:
        """Yield all elements in order, a few megabytes at a time."""
        for start in range(0, self.nbytes, _PIECE):
            length = min(_PIECE, self.nbytes - start)
            yield self._taken((length // self.dtype.itemsize,), [(start, length)])

    def _taken(self, shape: tuple[int, ...], spans: list[tuple[int, int]]) -> Tensor:
        """Return the bytes of ``spans`` (offset in the tensor, length), one behind the other, as a tensor."""
        out = torch.empty(sum(length for _, length in spans), dtype=torch.uint8)
        view, place = memoryview(out.numpy()), 0  # type: ignore[arg-type]
        with self.file.open("rb") as file:
            for offset, length in spans:
                file.seek(self.start + offset)
                if file.readinto(view[place : place + length]) != length:
                    raise InputError(f"{self.file}: truncated; copy it again")
                place += length
        return out.view(self.dtype).view(shape)


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, from its header; no weight is read.

    Raises InputError where the file is missing, of another kind (a pickle is refused unread), or shorter than its
    header says.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a safetensors file")
    refuse_foreign(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise InputError(f"{path}: truncated or not safetensors ({size} bytes); copy it again")
        text = file.read(length)
    try:
        table = json.loads(text)
        found = {name: _stored(path, entry, 8 + length) for name, entry in table.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: truncated or not safetensors ({error}); copy it again") from None
    expected = max((s.start + s.nbytes for s in found.values()), default=8 + length)
    if size < expected:
        raise InputError(f"{path}: truncated or not safetensors ({size} of {expected} bytes); copy it again")
    return found


def _stored(path: Path, entry: dict[str, Any], base: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise InputError(f"{path}: holds the dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    begin, end = entry["data_offsets"]
    stored = Stored(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), base + begin)
    if end - begin != stored.nbytes or begin < 0:
        raise ValueError(f"a tensor of {end - begin} bytes has the shape {entry['shape']} of {entry['dtype']}")
    return stored


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of CPU tensors without copying any in memory, which safetensors' own writer does."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.nbytes
        table[name] = {"dtype": names[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [place, end]}
        place = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def folder_weights(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a model folder by name, from the headers of its safetensors files.

    Raises InputError where weights are missing (no file, a shard, a tensor that the index promises), truncated, or in
    files that are refused unread (pickles, zip archives).
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        found.update(read_header(file))
    index = folder / _INDEX
    if index.is_file():
        lost = sorted(set(read_json(index, "a JSON index of shards")["weight_map"]) - found.keys())
        if lost:
            raise InputError(
                f"model {folder}: no shard holds {lost[0]} that the index names ({len(lost)} in all); copy it again"
            )
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: the shards that its index names, or the one file."""
    index = folder / _INDEX
    if index.is_file():
        found = read_json(index, "a JSON index of shards")
        shards = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise InputError(f"{index}: has no weight_map from tensors to files; copy it again")
        names = sorted(set(shards.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"model {folder}: {len(missing)} of {len(names)} shards missing, first {missing[0]}; copy them again"
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".zip", ".ckpt"))
    found_text = f"found {pickles[0]}, a pickle, which is refused unread" if pickles else "found no weights"
    raise InputError(f"model {folder}: {found_text}; expected model.safetensors (convert with save_pretrained)")


_INDEX = "model.safetensors.index.json"


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file; InputError where it is none, saying that ``what`` was expected."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not {what} ({error})") from None


def check_finite(weights: dict[str, Stored]) -> Iterator[str]:
    """Read every float tensor once and yield its name; InputError naming the first that holds NaN or infinity."""
    for name, stored in weights.items():
        known = stored.dtype.is_floating_point and stored.dtype.itemsize > 1
        if known and not all(bool(piece.isfinite().all()) for piece in stored.pieces()):
            raise InputError(f"{stored.file}: tensor {name} holds NaN or infinite values; the weights are damaged")
        yield name
