"""One row of the conformance table: an encoder of someone else's, and what is asked of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One encoder (and its decoder), and the keywords of `narrowcast.testing.conform` that say what is asked of it."""

    call: str
    encode: Callable[..., Any]
    decode: Callable[..., Any] | None = None
    asked: dict[str, Any] = field(default_factory=dict)


def row(call: str, encode: Callable[..., Any], decode: Callable[..., Any] | None = None, **asked: Any) -> Row:
    """Return a row; ``asked`` must have the format."""
    return Row(call, encode, decode, asked)
