"""The verb `compare` around a comparison that is made up: its table, its words, its JSON, its errors."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import narrowcast.cli.compare as verb
from narrowcast.cli import run
from narrowcast.cli.common import console
from narrowcast.compare import CompareConfig
from narrowcast.train import StepInfo


def row(recipe: str, loss: float | None, verdict: str) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "diverged": None if loss is not None else "at step 2",
        "val_loss": loss,
        "gap": None if loss is None else loss - 3.0,
        "verdict": verdict,
        "bits_weights": 4.25,
        "bits_operands": 4.25,
        "model_bytes": 1_234_567_890,
        "activation_bytes": 98_765_432_100,
        "step_seconds": None if loss is None else 12.345,
        "h100_8b_step_seconds": 1.2821,
    }


REPORT = {
    "model": {"name": "a small LlamaForCausalLM", "parameters": 1115264},
    "corpus": {"name": "Python standard library", "train_tokens": 2839890, "split": "by hand"},
    "training": {"steps": 150, "tokens_per_step": 1024},
    "noise": {"half_width": 0.0123, "explanation": "five seeds"},
    "rows": [
        row("bf16", 3.0, "baseline"),
        row("fp8-tensorwise", 3.01, "not distinguishable"),
        row("x", None, "diverged"),
    ],
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace comparison and report writer; return what they were called with."""
    seen: dict[str, Any] = {}

    def fake(config: CompareConfig, out: Path, **options: Any) -> dict[str, Any]:
        seen.update(config=config, out=out, **options)
        options["on_step"](
            0, len(config.runs), "bf16 (seed 0)", StepInfo(1, config.training.steps, 3.0, 1e-3, 0.1, 10.0)
        )
        return REPORT

    report = ModuleType("narrowcast.report")
    report.write = lambda report, out: out / "report.html"  # type: ignore[attr-defined]
    report.summary = lambda report: ["The first finding.", "The second finding."]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "narrowcast.report", report)
    monkeypatch.setattr(verb, "run_comparison", fake)
    return seen


def test_options_reach_the_comparison(made: dict[str, Any], tmp_path: Path) -> None:
    args = ["--recipes", "fp32, mxfp4", "--baseline", "fp16", "--steps", "7", "--seeds", "3", "--seed", "5"]
    assert run(["compare", *args, "--lr", "0.01", "--out", str(tmp_path / "o"), "--resume"]) == 0
    config = made["config"]
    assert (config.recipes, config.baseline, config.seeds) == (("fp32", "mxfp4"), "fp16", 3)
    assert (config.training.steps, config.training.seed, config.training.lr) == (7, 5, 0.01)
    assert (made["out"], made["resume"], made["overwrite"]) == (tmp_path / "o", True, False)


def test_people_get_table_findings_and_the_page(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 100)
    assert run(["compare", "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    for part in ("fp8-tensorwise", "not distinguishable", "+0.0100", "The first finding.", "noise: five seeds"):
        assert part in out
    assert str(tmp_path / "o" / "report.html") in out.replace("\n", "")


def test_machines_get_one_json_document(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT


def test_the_table_fits_a_hundred_columns() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(verb.table(REPORT))
    lines = capture.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    diverged = next(line for line in lines if line.startswith("x "))
    assert "diverged" in diverged
    assert " - " in diverged


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipes", "bf16,bf16"], "bf16 given twice"),
        (["--recipes", "mxfp5"], "unknown recipe 'mxfp5'; nearest: mxfp"),
        (["--seeds", "1"], "at least 2"),
        (["--steps", "0"], "--steps: expected at least 1"),
        (["--data", "/nonexistent/folder"], "no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["compare", *args, "--out", str(tmp_path / "o")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "o").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--help"]) == 0
    assert "Example" in capsys.readouterr().out
