"""Imports point down the floors only; the side wing knows nothing of precision. Read with ast, nothing is imported."""

import ast
from pathlib import Path

import pytest

import narrowcast

SOURCE = Path(narrowcast.__file__).parent

#: floor of each top-level name of the package; an import goes to a lower floor, or stays within its own package
FLOORS = {
    "errors": 0,
    "names": 0,
    "formats": 1,
    "accumulate": 2,
    "presets": 2,
    "scaling": 2,
    "transforms": 2,
    "quantize": 3,
    "ops": 4,
    "storage": 4,
    "passes": 4,
    "kernels": 5,
    "backend": 6,
    "attend": 6,
    "arithmetic": 7,
    "nn": 7,
    "optim": 7,
    "comm": 7,
    "recipes": 8,
    "health": 9,
    "place": 9,
    "io": 9,
    "analysis": 9,
    "testing": 9,
    "train": 10,
    "evaluate": 11,
    "rewrite": 10,
    "verify": 10,
    "ptq": 10,
    "qat": 10,
    "allocate": 10,
    "report": 11,
    "compare": 12,
    "studies": 12,
    "cli": 13,
    "__main__": 14,
}
WING = {"models", "metrics", "workloads"}
FILES = sorted(SOURCE.rglob("*.py"))


def unit(module: str) -> str:
    """``narrowcast.formats.minifloat`` -> ``formats``; the package itself -> ``""``."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """Dotted names of everything of narrowcast's that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            module = node.module or ""
            found |= {f"narrowcast.{a.name}" for a in node.names} if module == "narrowcast" else {module}
    return {name for name in found if name.split(".")[0] == "narrowcast"}


def complaint(importer: str, target: str) -> str | None:
    """Why a file of unit ``importer`` may not import from unit ``target``, or None."""
    if target in ("", "__version__") and importer in ("cli", "compare", "report", "io", "train"):
        return None  # the version, for output files; read inside functions
    if importer == target or target in ("errors", "names"):
        return None
    if importer in WING:
        return f"the side wing imports narrowcast.{target}; it may import narrowcast.errors and narrowcast.names only"
    if target in WING:
        return None if FLOORS[importer] >= FLOORS["io"] else f"floor {FLOORS[importer]} imports the side wing"
    if target not in FLOORS:
        return f"narrowcast.{target} has no floor"
    if FLOORS[target] >= FLOORS[importer]:
        return f"floor {FLOORS[importer]} ({importer}) imports floor {FLOORS[target]} ({target})"
    return None


def test_every_module_has_a_floor() -> None:
    units = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    unknown = units - set(FLOORS) - WING - {"__init__"}
    assert not unknown, f"give these a floor in tests/test_layers.py: {sorted(unknown)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    importer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if importer == "__init__":
        return  # the public face may name everything
    complaints = {complaint(importer, unit(name)) for name in imported(path)} - {None}
    assert not complaints, complaints


@pytest.mark.parametrize(
    ("importer", "target"),
    [("formats", "quantize"), ("scaling", "transforms"), ("models", "quantize"), ("nn", "models"), ("nn", "nowhere")],
)
def test_the_rule_can_fail(importer: str, target: str) -> None:
    assert complaint(importer, target)


def test_files_and_functions_stay_short() -> None:
    long_files = [f"{p.relative_to(SOURCE)}: {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > 400]
    assert not long_files
    functions = [
        f"{path.relative_to(SOURCE)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 70
    ]
    assert not functions
