"""Checkpoints: safetensors with a checksum, atomic, the last two kept.

``step-00000200.safetensors`` holds the tensors; its ``.json`` twin holds the rest (step, optimizer scalars, loss
scale) and the sha256 of the tensors. The twin is written last: a checkpoint without one does not exist.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.files import sha256, write_atomic

_KEPT = 2


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` and drop all but the newest two. Returns the path of its tensors."""
    path = folder / f"step-{step:08d}.safetensors"
    content = save({name: t.detach().contiguous() for name, t in tensors.items()}, metadata={"format": "pt"})
    write_atomic(path, content)
    twin = {"step": step, "sha256": sha256(content), "state": state}
    write_atomic(path.with_suffix(".json"), json.dumps(twin).encode())
    for old in _steps(folder)[:-_KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Return (step, tensors, state) of the newest checkpoint in ``folder``, or None where there is none.

    Raises InputError where its checksum does not match.
    """
    twins = _steps(folder)
    if not twins:
        return None
    twin = twins[-1]
    path = twin.with_suffix(".safetensors")
    older = f"; delete {twin.stem}.* to resume from the checkpoint before it" if len(twins) > 1 else ""
    try:
        described = json.loads(twin.read_text())
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error}){older}") from None
    found, expected = sha256(content), described["sha256"]
    if found != expected:
        raise InputError(
            f"checkpoint {path}: wrong checksum, found sha256 {found[:12]}..., expected {expected[:12]}...{older}"
        )
    try:
        tensors = load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"checkpoint {path}: not safetensors ({error}){older}") from None
    return described["step"], tensors, described["state"]


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))
