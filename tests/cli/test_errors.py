"""Bad input ends with one `error:` line on stderr, nothing on stdout, exit status 2."""

import json
import subprocess
import sys

import pytest

import narrowcast.cli as cli
from narrowcast.cli.common import emit
from narrowcast.errors import CheckFailed

BAD = [
    (["trian"], "unknown verb 'trian'; nearest: train"),
    (["formats", "e4m3fnx"], "unknown format or cast 'e4m3fnx'; nearest: e4m3fn"),
    (["formats", "mxfp"], "nearest: mxfp"),
    (["formats", "e2m1fn/1x32/e9m0"], "at character 13 ('e9m0')"),
    (["formats", "e2m1fn/1x32"], "expected format/tile/scale"),
    (["formats", "e2m1fn", "nope"], "unknown format or cast 'nope'"),
    (["formats", "--seed", "many"], "'--seed'"),
    (["formats", "--bogus"], "--bogus"),
    (["recipes", "fp8-rowise"], "unknown recipe 'fp8-rowise'; nearest: fp8-rowwise"),
    (["recipes", "bf16", "fp16"], "fp16"),
    (["bench", "trian"], "unknown benchmark 'trian'; nearest: train"),
    (["--bogus"], "--bogus"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_one_clear_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_benchmark_of_the_gpu_needs_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.run(["bench", "gemm"]) == 2
    assert "benchmark gemm needs a CUDA device" in capsys.readouterr().err


def test_json_output_is_not_begun_before_the_input_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["formats", "e2m1fn", "nope", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CheckFailed("too\nmuch"), 1, "error: too much"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(28, "No space left on device", "x.bin"), 2, "error: No space left on device: x.bin"),
    ],
)
def test_exit_status_by_class(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(verb: str) -> None:
        raise error

    monkeypatch.setattr(cli, "load", fail)
    assert cli.run(["train"]) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(verb: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "load", fail)
    with pytest.raises(ZeroDivisionError):
        cli.run(["train"])


WORDS = [*cli.VERBS, *(f"{verb} {name}" for verb, inner in cli.WITHIN.items() for name in inner)]


@pytest.mark.parametrize("verb", WORDS)
def test_every_verb_has_help_with_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*verb.split(), "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Usage: narrowcast {verb} [OPTIONS]" in out
    assert f"Example: narrowcast {verb}" in out
    assert "--json" in out


def test_a_verb_within_a_verb_has_its_own_arguments_and_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.WITHIN, "formats", {"recipes": "shown for the sake of this test"})
    assert cli.run(["formats", "recipes", "fp8-rowise"]) == 2
    assert "unknown recipe 'fp8-rowise'" in capsys.readouterr().err
    assert cli.run(["formats", "--help"]) == 0
    assert "narrowcast formats recipes: shown for the sake of this test" in " ".join(capsys.readouterr().out.split())


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(verb in overview for verb in cli.VERBS)
    assert cli.run([]) == 0
    assert capsys.readouterr().out == overview


def test_the_process_returns_the_status() -> None:
    command = [sys.executable, "-m", "narrowcast"]
    done = subprocess.run([*command, "recipes", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown recipe 'nope'")
    assert "Traceback" not in done.stderr


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("narrowcast 0.")


def test_json_has_no_word_for_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": float("inf"), "b": [float("nan"), 1.5]}, as_json=True, show=lambda: None)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}
