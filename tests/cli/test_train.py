"""``narrowcast train`` and ``evaluate``: what they print and leave behind."""

import json
from pathlib import Path

import pytest
from tests import tiny

import narrowcast.cli as cli


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_a_run_leaves_metrics_events_and_a_model_that_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tiny.write(tmp_path))
    train = [
        "train", "--recipe", "fp16", "--schedule", "wsd", "--accumulate", "2", "--steps", "4", "--batch", "4", "--context",
        "32", "--vocab", "300", "--eval-every", "2", "--data", "text", "--model", "config.json", "--out", "run",
    ]  # fmt: skip
    assert cli.run([*train, "--tensorboard", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [step for step, _ in said["val_losses"]] == [0, 2, 4]
    assert said["final_val_loss"] == said["val_losses"][-1][1]
    assert said["settings"]["recipe"] == "fp16"
    assert {row["became"] for row in said["conversion"]} == {"narrow", "wide"}
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert [[r["step"], r["val_loss"]] for r in records if "val_loss" in r] == said["val_losses"]
    assert next(p.name for p in Path("run-tensorboard").iterdir()).startswith("events.out")
    assert cli.run(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == "fp16"
    assert found["bits_per_byte"] > 0
    assert found["perplexity"] == pytest.approx(2.718281828459045 ** found["loss"])
    assert cli.run([*train, "--overwrite"]) == 0
    out = capsys.readouterr().out
    for said_so in ("split by file: 1 of 4 validate", "fp16: 7 layers narrowed, 2 sites left wide", "written     run"):
        assert said_so in out
