"""A run killed by SIGKILL at any moment resumes and gives the same losses bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model's config, a little text, and a cache of its own."""
    return tiny.write(tmp_path_factory.mktemp("inputs"))


def command(inputs: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = [
        "train", "--recipe", "mxfp4-rht-sr", "--steps", "30", "--batch", "4", "--context", "32", "--vocab", "300",
        "--checkpoint-every", "4", "--eval-every", "10", "--threads", "1", "--model", str(inputs / "config.json"),
        "--data", str(inputs / "text"), "--out", str(out), *more,
    ]  # fmt: skip
    program = "from narrowcast.cli import main; main()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(inputs / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def losses(out: Path) -> list[tuple[int, str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], key, r[key]) for r in records for key in ("loss", "val_loss") if key in r]


def test_a_killed_run_resumes_bit_for_bit(inputs: Path, tmp_path: Path) -> None:
    """Stochastic rounding and fresh Hadamard signs too: their streams are part of the checkpoint."""
    assert command(inputs, tmp_path / "whole").wait(120) == 0
    expected = losses(tmp_path / "whole")
    assert [step for step, key, _ in expected if key == "loss"] == list(range(1, 31))
    out = tmp_path / "killed"
    flags: list[str] = []
    for lines in (3, 14):  # before the first checkpoint, and in mid-course
        process = command(inputs, out, *flags)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= lines:
                break
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        flags = ["--resume"]
    assert command(inputs, out, "--resume").wait(120) == 0
    assert losses(out) == expected
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed"))
    assert a.read_bytes() == b.read_bytes()
