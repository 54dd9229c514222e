"""README.md tells the truth: its file tree is the tree, its Python runs, its commands and files exist."""

import doctest
import re
import subprocess
from pathlib import Path

import pytest

import readme
from narrowcast.cli import VERBS

TEXT = readme.README.read_text(encoding="utf-8")


def between(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert found, f"README.md has no place marked {name}"
    return found[1].strip().splitlines()


def test_the_file_tree_is_the_tree() -> None:
    written, real = between("file-tree"), readme.file_tree().splitlines()
    missing = [line for line in real if line not in written]
    stale = [line for line in written if line not in real]
    assert written == real, "\n".join(["run ./dev readme; missing:", *missing, "stale:", *stale])


def test_every_source_file_says_what_it_is() -> None:
    assert [str(path) for path in readme.sources() if not readme.first_line(path)] == []


@pytest.mark.filterwarnings("default")  # doctest runs the code as a user's session would
def test_the_python_runs_and_prints_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(TEXT, {}, "README.md", str(readme.README), 0)
    assert len(example.examples) >= 5
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_every_verb_is_named_and_no_other() -> None:
    assert set(re.findall(r"^\| `narrowcast (\w+)`", TEXT, re.MULTILINE)) == set(VERBS)


def test_every_dev_command_named_exists() -> None:
    usage = subprocess.run([readme.ROOT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    named = {
        command
        for file in ("README.md", "CONTRIBUTING.md")
        for command in re.findall(r"\./dev (\w+)", (readme.ROOT / file).read_text(encoding="utf-8"))
    }
    assert named
    assert named <= set(re.findall(r"^  (\w+) ", usage, re.MULTILINE))


def test_an_unknown_dev_command_is_bad_input() -> None:
    done = subprocess.run([readme.ROOT / "dev", "dmeo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("error: unknown command 'dmeo'\n")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE"])
def test_the_house_is_complete(name: str) -> None:
    assert (readme.ROOT / name).stat().st_size > 0


def test_contributing_fits_a_screen() -> None:
    assert len(Path(readme.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 50
