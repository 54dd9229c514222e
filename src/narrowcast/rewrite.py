"""Rewrite a safetensors file in a format: values on its grid, or packed codes and scales.

Tiles run along the contraction axis: the last one, or of a convolution's kernel (four axes or more) all but the first.
Values keep the file's names, dtypes, shapes and metadata, so whatever loads the original loads the result. Where the
original dtype cannot hold a value of the grid times its scale (bfloat16 under float32 scales), storing rounds a second
time; the error counts what is stored, and the share of such elements is told.

Codes replace a tensor ``NAME`` by ``NAME.codes`` (bytes, as `packing` says), ``NAME.scales`` and, of two-level scales,
``NAME.tensor_scale``; the file's metadata says of each which cast, shape and dtype it had, and `restore` decodes them.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from narrowcast.analysis.loss import Loss, measure, narrowed
from narrowcast.analysis.tensors import contraction_last
from narrowcast.errors import InputError, nearest
from narrowcast.formats import Stream
from narrowcast.io import TensorFile, open_tensors, write_like
from narrowcast.io.files import replacing
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of

NOTE = "narrowcast"  # key of what we add to a file's metadata
_WIDE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rewritten:
    """What became of one tensor.

    Attributes:
        name, shape, dtype: of the tensor in the source.
        became: ``"values"``, ``"codes"`` or ``"copied"``.
        why: of a copy.
        loss: of the others.
        again: share of elements that the original dtype rounded a second time.
        broken: how many values became infinite or NaN, because the format has no other word for them.
        bytes: of the tensor in the new file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    became: str
    why: str = ""
    loss: Loss | None = None
    again: float = 0.0
    broken: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        found = asdict(self) | {"shape": list(self.shape)}
        return found | {"loss": self.loss.to_json() if self.loss else None}


@dataclass(frozen=True)
class Job:
    """How to rewrite.

    Attributes:
        cast: what the tensors become; a tile that does not divide a tensor fills it up with zeros.
        keep: patterns (as file names have) of the tensors to copy as they are.
        seed: of a cast that draws random bits.
    """

    cast: Cast
    keep: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cast.scale.delayed is not None:
            raise InputError(f"cast {self.cast}: a delayed scale needs earlier steps; use fp32 instead")

    def why_copied(self, name: str, tensor: Tensor) -> str:
        """Return why ``tensor`` is copied as it is, or an empty string."""
        for pattern in self.keep:
            if fnmatch.fnmatchcase(name, pattern):
                return f"kept by {pattern!r}"
        if not tensor.is_floating_point():
            return "not floating point"
        if tensor.dtype not in _WIDE:
            return "narrow already"
        return "empty" if tensor.numel() == 0 else ""

    def fitted(self, x: Tensor) -> Cast:
        """Return the cast for ``x``: filled up where the tile does not divide it."""
        tile = self.cast.tile
        if tile.rows > 1 and x.dim() < 2:
            tile = replace(tile, rows=1)  # a bias has no second axis to share scales along
        return replace(self.cast, tile=replace(tile, pad=tile.cols > 0))


def _checked(source: TensorFile, job: Job) -> list[str]:
    """Return the names of the tensors to copy; InputError where a tensor is not finite or a pattern matches none."""
    kept, wrong = [], []
    for name, tensor in source:
        if job.why_copied(name, tensor):
            kept.append(name)
        elif not tensor.isfinite().all():
            wrong.append(name)
    for pattern in job.keep:
        if not fnmatch.filter(source.names, pattern):
            raise InputError(
                f"--keep {pattern}: matches no tensor of {source.path}{nearest(pattern, source.names[:50])}"
            )
    if wrong:
        named = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(
            f"{source.path}: NaN or infinite values in {named}; the file is damaged, or copy such tensors with --keep"
        )
    return kept


def rewrite(source: Path, target: Path, job: Job, note: Callable[[str], None] = lambda name: None) -> list[Rewritten]:
    """Write ``target`` with the values of ``source`` on the grid of ``job.cast``; return what became of each tensor.

    ``note`` is called with each tensor's name. Raises InputError for a source that is not finite safetensors.
    """
    opened = open_tensors(source)
    kept = _checked(opened, job)
    rows: list[Rewritten] = []

    def values() -> Iterator[Tensor]:
        for name, tensor in opened:
            note(name)
            value, row = _on_grid(name, tensor, job)
            rows.append(row)
            yield value

    write_like(opened, target, values(), {NOTE: json.dumps({"values_of": str(job.cast), "copied": kept})})
    return rows


def _on_grid(name: str, tensor: Tensor, job: Job) -> tuple[Tensor, Rewritten]:
    row = Rewritten(
        name, tuple(tensor.shape), dtype_name(tensor.dtype), "copied", job.why_copied(name, tensor), bytes=_size(tensor)
    )
    if row.why:
        return tensor, row
    x = contraction_last(tensor)
    cast = job.fitted(x)
    result, loss = narrowed(cast, x, job.seed)
    stored = result.to(tensor.dtype)
    again = int((stored != result).sum())
    loss = replace(measure(x, stored, cast), saturate=loss.saturate) if again else loss
    broken = tensor.numel() - int(stored.isfinite().sum())
    row = replace(row, became="values", loss=loss, again=again / tensor.numel(), broken=broken)
    return stored.view(tensor.shape), row


def rewrite_codes(
    source: Path, target: Path, job: Job, note: Callable[[str], None] = lambda name: None
) -> list[Rewritten]:
    """Write ``target`` with codes and scales in place of the tensors of ``source``; `read_codes` restores them.

    The new file's tensors are in memory until it is written. Raises InputError as `rewrite` does.
    """
    opened = open_tensors(source)
    _checked(opened, job)
    rows: list[Rewritten] = []
    tensors: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, tensor in opened:
        note(name)
        row = Rewritten(name, tuple(tensor.shape), dtype_name(tensor.dtype), "copied", job.why_copied(name, tensor))
        parts = {name: tensor}
        if not row.why:
            parts, table[name] = _coded(name, tensor, job)
            row = replace(_on_grid(name, tensor, job)[1], became="codes")
        rows.append(replace(row, bytes=sum(map(_size, parts.values()))))
        if clash := tensors.keys() & parts.keys() | (parts.keys() - {name}) & set(opened.names):
            raise InputError(f"{source}: has a tensor named {min(clash)} already, which codes of {name} would replace")
        tensors |= parts
    metadata = {**opened.metadata, NOTE: json.dumps({"codes": table})}
    with replacing(target) as part:
        save_file({n: t.contiguous() for n, t in tensors.items()}, part, metadata=metadata)
    return rows


def _coded(name: str, tensor: Tensor, job: Job) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the parts that replace ``tensor`` and its entry in the metadata."""
    x = contraction_last(tensor)
    q = job.fitted(x).quantize(x, Stream(job.seed), what=f"tensor {name}")
    parts = {f"{name}.codes": q.codes, f"{name}.scales": q.scales}
    if q.tensor_scale is not None:
        parts[f"{name}.tensor_scale"] = q.tensor_scale
    shapes = {"shape": list(tensor.shape), "matrix": list(q.shape), "padded": list(q.padded)}
    return parts, {"cast": str(q.cast), **shapes, "dtype": dtype_name(tensor.dtype), "seed": job.seed}


def restore(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `rewrite_codes` wrote, decoded, with their old shapes and dtypes.

    Bit for bit what `rewrite` would have written. Raises InputError for a file that holds no codes of ours.
    """
    opened = open_tensors(path)
    try:
        table = json.loads(opened.metadata[NOTE])["codes"]
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: holds no codes of ours; expected a file that 'formats convert --codes' wrote"
        ) from None
    parts = dict(opened)
    for name, entry in table.items():
        codes, scales = parts.pop(f"{name}.codes"), parts.pop(f"{name}.scales")
        whole = parts.pop(f"{name}.tensor_scale", None)
        matrix, padded = tuple(entry["matrix"]), tuple(entry["padded"])
        dtype, stream = getattr(torch, entry["dtype"]), Stream(entry["seed"])
        q = QTensor(codes, scales, whole, cast_of(entry["cast"]), matrix, padded, dtype, stream)
        parts[name] = q.dequantize().view(entry["shape"])
    return dict(sorted(parts.items()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
