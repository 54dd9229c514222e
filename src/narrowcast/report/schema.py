"""Reading ``report.json`` back, with suspicion."""

import json
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError

KIND, VERSION = "narrowcast-compare", 1


def load(path: Path) -> dict[str, Any]:
    """Return the report in ``path``; InputError where it is missing, not JSON, or not a comparison of ours."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the report.json of a finished 'narrowcast compare'")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); run 'narrowcast compare' again") from None
    kind = found.get("kind") if isinstance(found, dict) else type(found).__name__
    if kind != KIND:
        raise InputError(f"{path}: holds {kind!r}, expected {KIND!r}; give the folder of a comparison")
    if found.get("version") != VERSION:
        raise InputError(f"{path}: report version {found.get('version')}, expected {VERSION}; run the comparison again")
    report: dict[str, Any] = found
    return report
