"""Run folders: who may write where, and which settings a resumed run must share.

RUN/settings.json      what was asked for (its presence marks the folder as a narrowcast run)
RUN/metrics.jsonl      one line a step, one a validation
RUN/checkpoints/       see `checkpoint`
RUN/model/             the trained model as a Hugging Face folder
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError
from narrowcast.io.files import cannot_write, is_part, write_atomic

SETTINGS = "settings.json"


def check_run(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise InputError where a run may not be written to ``out``; changes nothing.

    That is where it exists and neither flag is given, and where it holds something that is no run of ours.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other: continue the run, or start it anew")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder or nothing")
    if not _holds_something(out):
        return
    if not (resume or overwrite):
        raise InputError(f"--out {out}: exists already; continue it with --resume or replace it with --overwrite")
    if not (out / SETTINGS).is_file():
        raise InputError(f"--out {out}: holds files but no {SETTINGS}, so it is no narrowcast run; choose another")


def open_run(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Prepare ``out`` for a run with ``settings``; a run that is not there yet may be "resumed" too.

    Raises InputError as `check_run` does, and where ``resume`` meets other settings (the differences are listed).
    """
    check_run(out, resume=resume, overwrite=overwrite)
    if _holds_something(out):
        if resume:
            _check_same(out, settings)
            return
        _remove(out)
    write_atomic(out / SETTINGS, json.dumps(settings, indent=1, sort_keys=True).encode())


def read_settings(out: Path) -> dict[str, Any]:
    """Return the settings of the run in ``out``."""
    try:
        settings = json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{out / SETTINGS}: cannot be read ({error}); start anew with --overwrite") from None
    if not isinstance(settings, dict):
        raise InputError(f"{out / SETTINGS}: holds a {type(settings).__name__}, expected the settings of a run")
    return settings


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Add one JSON line to ``path``."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None


def truncate_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of ``path`` (JSON lines with a "step") after ``step``, and a half-written last one.

    Returns the records kept.
    """
    kept: list[dict[str, Any]] = []
    if not path.exists():
        return kept
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] <= step:
            kept.append(record)
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept


def _holds_something(out: Path) -> bool:
    """Return whether ``out`` has content other than what a writer left that was killed over its very first file."""
    return out.is_dir() and any(not is_part(path) for path in out.iterdir())


def _remove(out: Path) -> None:
    """Delete a run; moved aside first, so that a kill meanwhile leaves no folder that is half a run."""
    aside = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.old")
    try:
        os.replace(out.resolve(), aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be replaced ({error.strerror})") from None


def _check_same(out: Path, settings: dict[str, Any]) -> None:
    old, new = read_settings(out), json.loads(json.dumps(settings))
    changed = [
        f"{key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(f"--resume {out}: settings differ ({'; '.join(changed)}); repeat the old ones, or start anew")
