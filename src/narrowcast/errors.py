"""The errors a user can cause, and the exit status of each.

Every message is one line that names the tensor or file, what was found, what was expected and the remedy.
"""

import difflib
from collections.abc import Iterable

_LISTED = 16  # names in a message: it stays one line to read


class NarrowcastError(Exception):
    """Base of all errors narrowcast raises on purpose."""

    exit_status = 1


class CheckFailed(NarrowcastError):  # noqa: N818 - the name says what happened
    """A check ran and the answer is no (exit status 1)."""


class InputError(NarrowcastError, ValueError):
    """Bad input: a name, a file, a shape or a setting (exit status 2)."""

    exit_status = 2


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; nearest: a, b"`` for the names closest to ``name``, or the first ones where none is close."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; nearest: {', '.join(close)}"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"; known: {', '.join(known[:_LISTED])}{more}"


def require_torch(version: str, minimum: tuple[int, int] = (2, 11)) -> None:
    """Raise InputError where torch ``version`` is older than ``minimum``."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < minimum:
        needed = ".".join(map(str, minimum))
        raise InputError(f"torch {version} is too old: expected {needed} or newer; pip install -U torch")
