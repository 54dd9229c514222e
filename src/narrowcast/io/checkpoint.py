"""Checkpoints: safetensors with a checksum, atomic, the last two kept.

``step-00000200.safetensors`` holds the tensors; its ``.json`` twin holds the rest (step, loss scale) and the sha256
of the tensors. The twin is written last and deleted first: a checkpoint without one does not exist. So a kill at any
moment leaves the newest complete checkpoint, or the one before it.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.files import remove_parts, replacing, sha256, write_atomic

_KEPT = 2


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` and drop all but the newest two. Returns the path of its tensors.

    Raises InputError where it cannot be written; older checkpoints stay as they are.
    """
    path = folder / f"step-{step:08d}.safetensors"
    with replacing(path) as part:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata={"format": "pt"})
        digest = sha256(part)
    twin = {"step": step, "sha256": digest, "state": state}
    write_atomic(path.with_suffix(".json"), json.dumps(twin).encode())
    _tidy(folder)
    return path


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Return (step, tensors, state) of the newest checkpoint in ``folder``, or None where there is none.

    Raises InputError where it cannot be read or its checksum does not match: it never falls back unasked.
    """
    twins = _twins(folder)
    if not twins:
        return None
    twin = twins[-1]
    path = twin.with_suffix(".safetensors")
    remedy = f"; delete {twin.stem}.* to go back to " + ("the checkpoint before it" if len(twins) > 1 else "the start")
    try:
        described = json.loads(twin.read_text())
        step, expected, state = described["step"], described["sha256"], described["state"]
        found = sha256(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error}){remedy}") from None
    if found != expected:
        raise InputError(
            f"checkpoint {path}: wrong checksum, found sha256 {found[:12]}..., expected {expected[:12]}...{remedy}"
        )
    try:
        return step, load_file(path), state
    except safetensors.SafetensorError as error:
        raise InputError(f"checkpoint {path}: not safetensors ({error}){remedy}") from None


def check_fit(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise InputError where a checkpoint holds tensors of another model: other names, or other shapes."""
    model = {name: t for name, t in found.items() if name.startswith("model.")}
    for name in sorted(model.keys() | expected.keys()):
        then, now = (str(list(t[name].shape)) if name in t else "absent" for t in (model, expected))
        if then != now:
            raise InputError(
                f"checkpoint of another model: {name.removeprefix('model.')} was {then} then and is {now} now; "
                "resume with the --model that the run began with"
            )


def _twins(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))


def _tidy(folder: Path) -> None:
    """Delete old checkpoints and what killed writers left."""
    kept = {twin.stem for twin in _twins(folder)[-_KEPT:]}
    for pattern in ("step-*.json", "step-*.safetensors"):  # twins first
        for old in folder.glob(pattern):
            if old.stem not in kept:
                old.unlink(missing_ok=True)
    remove_parts(folder)
