"""`narrowcast formats conform`, as a user and as a program sees it."""

import json
import sys
from pathlib import Path

import pytest

from narrowcast.cli import run

SOURCE = """
import torch
def good(x): return x.clamp(-448, 448).to(torch.float8_e4m3fn)
def decode(c): return c.float()
def away(x): return torch.trunc(x.double() + 0.5 * x.sign()).nan_to_num(0).clamp(-127, 127).float()
def boom(x): raise RuntimeError("only on\\na GPU")
number = 3
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "kernels_under_test.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "kernels_under_test", raising=False)
    return "kernels_under_test"


def test_what_conforms_is_exit_status_0(kernels: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["formats", "conform", f"{kernels}:good", "--decode", f"{kernels}:decode", "--format", "e4m3fn"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert out.count("conforms: all") == 2
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conforms"] is True


def test_what_does_not_conform_is_exit_status_1_with_the_reason(
    kernels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["formats", "conform", f"{kernels}.py:away", "--format", "int8", "--json"]) == 1
    out, err = capsys.readouterr()
    (finding,) = json.loads(out)["findings"]
    assert finding["first"]["input"] == "0x3f000000"
    assert [reason["name"] for reason in finding["reasons"]] == ["NaN lost: it becomes zero", "ties away from zero"]
    assert err == "error: kernels_under_test.py:away: 1284 of 123764 answers differ\n"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("{}:boom", "boom failed on torch arrays (float32 [8, 64]): RuntimeError: only on a GPU"),
        ("{}:number", "number is of type int, expected a function"),
        ("{}:goood", "has no 'goood'; nearest: good"),
        ("nowhere_to_be_found:f", "cannot be imported: No module named 'nowhere_to_be_found'"),
        ("missing.py:f", "missing.py: no such file"),
        ("{}", "names no function: expected MODULE:FUNCTION"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    kernels: str, function: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["formats", "conform", function.format(kernels), "--format", "e4m3fn"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_the_word_conform_takes_nothing_from_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["formats", "e4m3fn", "conform"]) == 2
    assert "'conform'" in capsys.readouterr().err
