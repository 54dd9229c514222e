"""The errors a user can cause, and the exit status of each.

Every message is one line that names the tensor or file, what was found, what was expected and the remedy.
"""

import difflib
from collections.abc import Iterable


class NarrowcastError(Exception):
    """Base of all errors narrowcast raises on purpose."""

    exit_status = 1


class CheckFailed(NarrowcastError):  # noqa: N818 - the name says what happened
    """A check ran and the answer is no (exit status 1)."""


class InputError(NarrowcastError, ValueError):
    """Bad input: a name, a file, a shape or a setting (exit status 2)."""

    exit_status = 2


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; nearest: a, b"`` for the known names closest to ``name``, or the start of the list."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else f"; known: {', '.join(known)}"
