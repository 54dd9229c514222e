"""Writing files so that a crash at any moment leaves the old content or the new, never half of it.

The new content is written beside the file, pushed to the disk, and renamed over it: POSIX renames are atomic. The
folder is pushed too, for the rename itself to survive a power cut.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from narrowcast.errors import InputError

_PREFIX, _SUFFIX = ".", ".part"  # of what a killed writer leaves behind


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write the new content of ``path`` to; it takes the old one's place when the block ends well.

    Raises InputError naming the file where the disk is full or the folder cannot be written; the old file stays.
    """
    part = path.with_name(f"{_PREFIX}{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _push(part)
        os.replace(part, path)
        _push(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in words of its own
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise cannot_write(path, error) from None
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def cannot_write(path: Path, error: Exception) -> InputError:
    """Return the InputError for a failed write of ``path``."""
    why = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot write {path}: {why}; what stood there before is untouched. Make room or choose another")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content)


def remove_parts(folder: Path) -> None:
    """Delete what killed writers left in ``folder``."""
    for part in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes ``path``, which must not exist or be empty, when the block ends well.

    Raises InputError where something is there, and where it cannot be written; then ``path`` is as it was.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists already; choose another folder, or remove it")
    part = path.with_name(f"{_PREFIX}{path.name}{_SUFFIX}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_part(path: Path) -> bool:
    """Return whether ``path`` is what a killed writer left."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)


def sha256(path: Path) -> str:
    """Return the hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _push(path: Path) -> None:
    """Wait until ``path`` (a file or a folder) is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sized(size: float) -> str:
    """Return bytes as text in the unit that suits them (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"
