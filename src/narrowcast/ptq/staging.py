"""Where a quantized model grows: a hidden folder beside the one asked for, which takes its place when it is whole.

STAGING/settings.json          what was asked for
STAGING/model-*.safetensors    one file a part, in the layout asked for
STAGING/part-00003.json        what became of part 3, and its file's checksum: with it the part is finished
STAGING/state-00003.safetensors   the calibration behind the newest finished part
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheSpec
from narrowcast.io.files import remove_parts, replacing, sha256, write_atomic
from narrowcast.io.quantized import LayerSpec, Layout
from narrowcast.io.runs import SETTINGS, open_run
from narrowcast.io.weights import write_tensors
from narrowcast.ptq.stream import Piece, State

Json = dict[str, Any]
_COPIED = {".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ""}  # tokenizer, template, licence
_NOT_COPIED = {"config.json", "model.safetensors.index.json", "report.json"}
_LARGEST_COPIED = 1 << 26


@dataclass(frozen=True)
class Staging:
    """The folder in which one run works.

    Attributes:
        out: where the model is to be.
        layout: how its layers are written.
        parts: how many parts there are.
    """

    out: Path
    layout: Layout
    parts: int

    @property
    def folder(self) -> Path:
        """The hidden folder."""
        return staging_of(self.out)

    def open(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Prepare the folder; InputError where a resumed run was asked for something else."""
        open_run(self.folder, settings, resume=resume, overwrite=overwrite)
        remove_parts(self.folder)

    def done(self) -> tuple[list[dict[str, Any]], State | None]:
        """Return what became of the finished parts, and where the calibration stood behind them.

        Raises InputError where a file of a finished part is damaged.
        """
        records: list[dict[str, Any]] = []
        while (path := self._record(len(records))).is_file():
            record = json.loads(path.read_text())
            shard = self.folder / record["file"]
            if not shard.is_file() or sha256(shard) != record["sha256"]:
                raise InputError(f"{shard}: damaged or missing; start anew with --overwrite")
            records.append(record)
        states = [p for p in sorted(self.folder.glob("state-*.safetensors")) if p <= self._state(len(records) - 1)]
        return records, State.of(load_file(states[-1])) if records and states else None

    def store(self, piece: Piece, narrowed: list[dict[str, Any]]) -> dict[str, Any]:
        """Write a finished part; only when everything of it is on the disk does it count as finished."""
        tensors = self.layout.wide(dict(piece.wide))
        for layer in piece.part.layers:
            tensors.update(self.layout.tensors(layer))
        for one in piece.part.cache:
            tensors.update(self.layout.cache_tensors(one))
        path = self.folder / self.shard(piece.number)
        digest = _write(path, tensors)
        if piece.state is not None:
            _write(self._state(piece.number), piece.state.tensors())
        record = {
            "file": path.name,
            "sha256": digest,
            "tensors": {name: t.nbytes for name, t in tensors.items()},
            "specs": [layer.spec.to_json() for layer in piece.part.layers],
            "cache": [one.spec.to_json() for one in piece.part.cache],
            "narrowed": narrowed,
            "silent": piece.part.silent,
            "drift": finite(piece.drift),
        }
        write_atomic(self._record(piece.number), json.dumps(record).encode())
        if piece.state is not None:
            self._state(piece.number - 1).unlink(missing_ok=True)
        return record

    def shard(self, number: int) -> str:
        """Return the name of the file of a part, as `transformers` names shards."""
        return "model.safetensors" if self.parts == 1 else f"model-{number + 1:05d}-of-{self.parts:05d}.safetensors"

    def complete(self, source: Path, config: Json, records: list[Json]) -> None:
        """Write what else belongs to a model folder: index, config, tokenizer."""
        if self.parts > 1:
            places = {name: record["file"] for record in records for name in record["tensors"]}
            total = sum(size for record in records for size in record["tensors"].values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            write_atomic(self.folder / "model.safetensors.index.json", json.dumps(index, indent=1).encode())
        for path in sorted([*source.glob("*"), *source.glob("[!.]*/*")]):  # sentence encoders keep settings in folders
            if _belongs(path, path.parent == source):
                write_atomic(self.folder / path.relative_to(source), path.read_bytes())
        write_atomic(self.folder / "config.json", json.dumps(config, indent=1).encode())

    def publish(self, report: Json) -> None:
        """Write the report, drop what only the run needed, and put the folder in its place."""
        write_atomic(self.folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
        for path in (*self.folder.glob("part-*.json"), *self.folder.glob("state-*.safetensors")):
            path.unlink()
        (self.folder / SETTINGS).unlink()
        _take_place(self.folder, self.out)

    def discard(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.json"

    def _state(self, number: int) -> Path:
        return self.folder / f"state-{number:05d}.safetensors"


def _belongs(path: Path, top: bool) -> bool:
    """Return whether a file of the original's folder goes into the new one: small texts that are not rewritten."""
    rewritten = (top and path.name in _NOT_COPIED) or path.name.startswith(".")
    known = path.suffix in _COPIED and not rewritten
    return known and path.is_file() and path.stat().st_size <= _LARGEST_COPIED


def staging_of(out: Path) -> Path:
    """Return the folder in which the model at ``out`` grows."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.quantizing")


def check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise InputError where a model may not be written to ``out``; changes nothing."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other: continue the run, or start it anew")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder or nothing")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file, expected a folder; choose another")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"--out {out}: exists already; replace it with --overwrite or choose another")
        if not (out / "config.json").is_file() or not (out / "report.json").is_file():
            raise InputError(f"--out {out}: holds files that are no quantized model of ours; choose another")
    if staging_of(out).exists() and not (resume or overwrite):
        raise InputError(
            f"--out {out}: a run that was not finished is there; go on with --resume, drop it with --overwrite"
        )


def layer_specs(records: Sequence[dict[str, Any]]) -> list[LayerSpec]:
    """Return the layers of finished parts."""
    return [LayerSpec.from_json(row) for record in records for row in record["specs"]]


def cache_specs(records: Sequence[dict[str, Any]]) -> list[CacheSpec]:
    """Return what cached keys and values became in finished parts."""
    return [CacheSpec.from_json(row) for record in records for row in record.get("cache", [])]


def plain(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what became of matrices as plain values, without their codes."""
    found = []
    for row in rows:
        values = {key: finite(value) for key, value in vars(row).items() if key != "quantized"}
        found.append({**values, "shape": list(row.shape), "notes": list(row.notes), "bytes": row.quantized.nbytes})
    return found


def finite(value: Any) -> Any:
    """Return ``value``, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a safetensors file atomically and return its checksum."""
    with replacing(path) as part:
        write_tensors(part, {name: t.detach().cpu() for name, t in sorted(tensors.items(), key=_width)})
        return sha256(part)


def _width(item: tuple[str, Tensor]) -> tuple[int, str]:
    """Sort key under which wide elements come first, so that each tensor begins at a multiple of its element's size."""
    return -item[1].dtype.itemsize, item[0]


def _take_place(folder: Path, out: Path) -> None:
    """Rename ``folder`` to ``out``; what stood there goes aside first, so that there is never half of either."""
    whole, aside = out.resolve(), out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.old")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        if whole.exists():
            os.replace(whole, aside)
        os.replace(folder, whole)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); the model lies in {folder}") from None
