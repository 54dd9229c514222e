"""Run folders: who may write where, and which settings a resumed run must share.

    RUN/settings.json      what was asked for (its presence marks the folder as a narrowcast run)
    RUN/metrics.jsonl      one line a logged step
    RUN/checkpoints/       see `checkpoint`
    RUN/model/             the trained model as a Hugging Face folder
"""

import json
import shutil
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError
from narrowcast.io.files import write_atomic

SETTINGS = "settings.json"


def open_run(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Prepare ``out`` for a run with ``settings``.

    Raises InputError where it exists and neither flag is given, where ``overwrite`` would delete something that is
    no run, and where ``resume`` meets other settings (the differences are listed).
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other: continue the run, or start it anew")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder or nothing")
    exists = out.exists() and any(out.iterdir())
    if exists and not (resume or overwrite):
        raise InputError(f"--out {out}: exists already; continue it with --resume or replace it with --overwrite")
    if exists and not (out / SETTINGS).is_file():
        raise InputError(f"--out {out}: holds files but no {SETTINGS}, so it is no narrowcast run; choose another folder")
    if exists and resume:
        _check_same(out, settings)
        return
    if exists:
        shutil.rmtree(out)
    write_atomic(out / SETTINGS, json.dumps(settings, indent=1, sort_keys=True).encode())


def read_settings(out: Path) -> dict[str, Any]:
    """Return the settings of the run in ``out``."""
    try:
        settings: dict[str, Any] = json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{out / SETTINGS}: cannot be read ({error})") from None
    return settings


def _check_same(out: Path, settings: dict[str, Any]) -> None:
    old = read_settings(out)
    new = json.loads(json.dumps(settings))
    changed = [
        f"{key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(f"--resume {out}: settings differ ({'; '.join(changed)}); repeat the old ones, or start anew")


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
