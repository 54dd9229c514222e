"""A report.json that is absent, broken or foreign is one clear line; a good one comes back as it was."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.made_up import report

from narrowcast.errors import InputError
from narrowcast.report import load, render

Json = dict[str, Any]


def stored(folder: Path, content: Any) -> Path:
    path = folder / "report.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_good_report_comes_back_as_it_was(tmp_path: Path) -> None:
    assert load(stored(tmp_path, report())) == report()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"kind": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "holds 'list', expected 'narrowcast-compare'"),
        ('{"a": 1}', "holds None, expected 'narrowcast-compare'"),
        ('{"kind": "narrowcast-compare", "version": 99}', "report version 99, expected 1"),
    ],
)
def test_what_is_no_report_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = stored(tmp_path, content)
    with pytest.raises(InputError, match=r"report\.json") as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="not JSON"):
        load(tmp_path / "report.json")


#: every object of the report: where it stands, as a function of the report
PARTS: dict[str, Callable[[Json], Json]] = {
    "top": lambda r: r,
    **{name: lambda r, name=name: r[name] for name in ("corpus", "model", "training", "noise", "gpu")},
    "constant": lambda r: r["gpu"]["constants"][0],
    "row": lambda r: r["rows"][1],
    "site": lambda r: r["rows"][1]["sites"][0],
    "conversion": lambda r: r["rows"][1]["conversion"][0],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_key_is_named_or_not_needed(part: str, tmp_path: Path) -> None:
    refused = 0
    for key in PARTS[part](report()):
        broken = copy.deepcopy(report())
        del PARTS[part](broken)[key]
        try:
            found = load(stored(tmp_path, broken))
        except InputError as error:
            refused += 1
            assert key in str(error) or key in ("kind", "version", "verdict")
        else:
            render(found)  # what is not asked for is not read either
    assert refused > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["rows"][1].update(train=[[1]]), "expected [step, loss]"),
        (lambda r: r["rows"][1].update(verdict="splendid"), "verdict 'splendid'"),
        (lambda r: r["rows"][1].update(gap=None), "lacks its loss, gap or time"),
        (lambda r: r["rows"].pop(1), "no row of the baseline 'bf16'"),
        (lambda r: r["rows"].append(3), "row 6 is a int, expected an object"),
        (lambda r: r["noise"].update(half_width="wide"), "'half_width' of noise is a str"),
    ],
)
def test_a_wrong_value_is_named(change: Callable[[Json], None], message: str, tmp_path: Path) -> None:
    broken = report()
    change(broken)
    with pytest.raises(InputError) as caught:
        load(stored(tmp_path, broken))
    assert message in str(caught.value)
