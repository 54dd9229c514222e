"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from narrowcast.errors import InputError


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: written beside it, synced, renamed.

    Raises InputError naming the file where the disk is full or the folder is not writable; the old file stays.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise InputError(f"cannot write {path}: {error.strerror}; what stood there before is untouched") from None


def sha256(content: bytes) -> str:
    """Return the hexadecimal digest of ``content``."""
    return hashlib.sha256(content).hexdigest()
