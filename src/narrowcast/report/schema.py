"""Reading ``report.json`` back, with suspicion."""

import json
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError

KIND, VERSION = "narrowcast-compare", 1

Shape = dict[str, type | tuple[type, ...]]
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))  # what a run that diverged lacks
#: what the page reads: each key with the types it may have; other keys may stand beside them
_REPORT: Shape = {
    **dict.fromkeys(("command", "baseline"), str),
    **dict.fromkeys(("versions", "corpus", "model", "training", "noise", "gpu"), dict),
    "rows": list,
}
_PARTS: dict[str, Shape] = {
    "corpus": {"name": str, "train_tokens": int},
    "model": {"name": str, "parameters": int},
    "training": {"steps": int, "tokens_per_step": int},
    "noise": {"half_width": _NUMBER, "explanation": str, "losses": list},
    "gpu": {"name": str, "constants": list},
}
_ROW: Shape = {
    **dict.fromkeys(("recipe", "summary", "paper", "verdict", "h100_note"), str),
    **dict.fromkeys(("bits_operands", "bits_weights", "model_bytes", "optimizer_bytes", "activation_bytes"), _NUMBER),
    **dict.fromkeys(("h100_step_seconds", "h100_8b_step_seconds"), _NUMBER),
    **dict.fromkeys(("val_loss", "gap", "step_seconds"), _MAYBE),
    **dict.fromkeys(("train", "val", "sites", "conversion"), list),
    "diverged": (str, type(None)),
    "skipped_steps": int,
}
_CONSTANT: Shape = {"name": str, "value": _NUMBER, "unit": str, "source": str}
_SITE: Shape = {"site": str, "operand": str, "sqnr_db": _MAYBE, "underflow": _NUMBER, "saturate": _NUMBER}
_CONVERTED: Shape = {**dict.fromkeys(("name", "kind", "became", "backend", "kernel", "why"), str), "shape": list}
_VERDICTS = ("baseline", "worse", "not distinguishable", "better", "diverged")


def load(path: Path) -> dict[str, Any]:
    """Return the report in ``path``; InputError where it is missing, not JSON, or not a comparison of ours."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the report.json of a finished 'narrowcast compare'")
    try:
        found = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); run 'narrowcast compare' again") from None
    kind = found.get("kind") if isinstance(found, dict) else type(found).__name__
    if kind != KIND:
        raise InputError(f"{path}: holds {kind!r}, expected {KIND!r}; give the folder of a comparison")
    if found.get("version") != VERSION:
        raise InputError(f"{path}: report version {found.get('version')}, expected {VERSION}; run the comparison again")
    _check(path, found)
    report: dict[str, Any] = found
    return report


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _check(path: Path, report: dict[str, Any]) -> None:
    """Raise InputError where the page would not find what it reads."""
    _has(path, "the report", report, _REPORT)
    for part, shape in _PARTS.items():
        _has(path, part, report[part], shape)
    for constant in report["gpu"]["constants"]:
        _has(path, "a GPU constant", constant, _CONSTANT)
    for place, row in enumerate(report["rows"]):
        _check_row(path, f"row {place}", row)
    if not any(row["verdict"] == "baseline" and row["recipe"] == report["baseline"] for row in report["rows"]):
        raise InputError(f"{path}: no row of the baseline {report['baseline']!r}; run 'narrowcast compare' again")


def _check_row(path: Path, where: str, row: Any) -> None:
    _has(path, where, row, _ROW)
    if row["verdict"] not in _VERDICTS or (row["verdict"] == "diverged") != (row["diverged"] is not None):
        raise InputError(f"{path}: {where} has verdict {row['verdict']!r}; expected one of {', '.join(_VERDICTS)}")
    if row["diverged"] is None and None in (row["val_loss"], row["gap"], row["step_seconds"]):
        raise InputError(f"{path}: {where} lacks its loss, gap or time; run 'narrowcast compare' again")
    for site in row["sites"]:
        _has(path, f"a site of {where}", site, _SITE)
    for site in row["conversion"]:
        _has(path, f"a conversion of {where}", site, _CONVERTED)
    for point in (*row["train"], *row["val"]):
        if not (isinstance(point, list) and len(point) == 2 and all(isinstance(v, _NUMBER) for v in point)):
            raise InputError(f"{path}: {where} has {point!r} in a loss curve, expected [step, loss]")


def _has(path: Path, where: str, found: Any, shape: Shape) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{path}: {where} is a {type(found).__name__}, expected an object")
    for key, kinds in shape.items():
        if key not in found or not isinstance(found[key], kinds):
            state = f"is a {type(found[key]).__name__}" if key in found else "is missing"
            raise InputError(f"{path}: {key!r} of {where} {state}; run 'narrowcast compare' again")
