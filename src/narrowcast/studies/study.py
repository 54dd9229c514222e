"""A study: a paper's claim, shrunk to a size that runs here, and what came of it.

A study file holds one `Study`: data, and a function that measures. It returns an `Outcome`: checks (each a number
found, what was expected, and whether it holds), tables and plots. The verdict follows from the checks, unwritten:

- ``not valid``: a golden check failed, so what was measured says nothing about the claim;
- ``holds``, ``holds in part``, ``does not hold here``: all, some or none of the claim's checks hold.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError

VERDICTS = ("holds", "holds in part", "does not hold here", "not valid")
DATA = "NARROWCAST_DATA"


@dataclass(frozen=True)
class Check:
    """One fact that was measured.

    Attributes:
        name: what was measured, with its unit.
        found: the figure, or a word.
        expected: what it was to be, as text.
        holds: whether it is so.
        claim: a part of the paper's claim; if False a golden check of our own means.
    """

    name: str
    found: float | str
    expected: str
    holds: bool
    claim: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.found, float) and math.isnan(self.found) and self.holds:
            raise InputError(f"check {self.name!r}: found NaN, which holds for nothing")


def at_least(name: str, found: float, bound: float, *, claim: bool = True) -> Check:
    """``found >= bound``."""
    return Check(name, found, f"at least {bound:g}", found >= bound, claim)


def at_most(name: str, found: float, bound: float, *, claim: bool = True) -> Check:
    """``found <= bound``."""
    return Check(name, found, f"at most {bound:g}", found <= bound, claim)


def within(name: str, found: float, target: float, tolerance: float, *, claim: bool = True) -> Check:
    """``abs(found - target) <= tolerance``."""
    return Check(name, found, f"{target:g} within {tolerance:g}", abs(found - target) <= tolerance, claim)


def equal(name: str, found: float | str, expected: float | str, *, claim: bool = True) -> Check:
    """``found == expected``."""
    return Check(name, found, str(expected), found == expected, claim)


@dataclass(frozen=True)
class Setting:
    """How a study is to run.

    Attributes:
        seed: decides weights, batches and random bits.
        quick: a tiny version that only shows that the study runs; its verdict counts for nothing.
        data: folder of the real data (`NARROWCAST_DATA`), or None.
        note: called with a line of progress.
    """

    seed: int = 0
    quick: bool = False
    data: Path | None = None
    note: Callable[[str], None] = lambda line: None

    def folder(self, name: str) -> Path:
        """Return the folder ``name`` of the real data; InputError where there is none."""
        if self.data is None:
            raise InputError(f"this study needs real data: set {DATA} (or --data) to a folder that has {name!r}")
        path = self.data / name
        if not path.exists():
            raise InputError(f"{path}: no such folder; this study needs it (see {DATA})")
        return path


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        checks: at least one of the claim's.
        tables: each ``{"title", "columns", "rows"}``, cells strings or numbers.
        plots: each as `narrowcast.report.theme` describes.
        notes: sentences: what is different from the paper, what was out of reach.
    """

    checks: tuple[Check, ...]
    tables: tuple[dict[str, Any], ...] = ()
    plots: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(check.claim for check in self.checks):
            raise InputError("a study's outcome needs at least one check of the claim")

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return verdict([asdict(check) for check in self.checks])


def verdict(checks: list[dict[str, Any]]) -> str:
    """Return the verdict that ``checks`` (each a `Check` as a dictionary) lead to."""
    if not all(check["holds"] for check in checks if not check["claim"]):
        return "not valid"
    claims = [check["holds"] for check in checks if check["claim"]]
    return "holds" if all(claims) else "holds in part" if any(claims) else "does not hold here"


@dataclass(frozen=True)
class Study:
    """A paper's claim and how it is tried here.

    Attributes:
        number: of its sheet.
        title: a few words.
        paper: authors, year, title.
        claim: one sentence.
        baseline, treatment, measure, expected: the protocol, a line each.
        run: measures.
        needs: ``"data"`` where real data are needed, ``"cuda"`` where a GPU is, ``"compiler"`` where a C++ compiler is.
    """

    number: int
    title: str
    paper: str
    claim: str
    baseline: str
    treatment: str
    measure: str
    expected: str
    run: Callable[[Setting], Outcome]
    needs: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - {"data", "cuda", "compiler"}:
            raise InputError(f"study {self.number}: unknown needs {sorted(unknown)}; expected data, cuda, compiler")

    def facts(self) -> dict[str, Any]:
        """Return everything but the function, as plain JSON values."""
        keys = ("number", "title", "paper", "claim", "baseline", "treatment", "measure", "expected")
        return {key: getattr(self, key) for key in keys} | {"needs": list(self.needs)}


def data_folder(given: Path | None = None) -> Path | None:
    """Return the folder of real data: ``given``, else what the environment names, else None."""
    named = os.environ.get(DATA)
    found = given or (Path(named) if named else None)
    if found is not None and not found.is_dir():
        raise InputError(f"{found}: no such folder; expected the folder of real data ({DATA})")
    return found
