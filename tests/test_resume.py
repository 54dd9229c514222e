"""A run killed by SIGKILL at any moment resumes and gives the same losses bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from narrowcast.cli import run
from narrowcast.models import compiled, from_config
from tests import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model's config, a little text, and a cache of its own."""
    return tiny.write(tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--recipe", "mxfp4-rht-sr+bf16-adam-sr", "--steps", "30", "--batch", "4", "--context", "32", "--vocab", "300",
        "--checkpoint-every", "4", "--eval-every", "10", "--threads", "1", "--model", str(inputs / "config.json"),
        "--data", str(inputs / "text"), "--out", str(out), *more,
    ]  # fmt: skip


def killed_after(lines: int, out: Path, command: list[str]) -> None:
    """Start a process of its own for ``command`` and kill it when its metrics have ``lines`` lines."""
    program = [sys.executable, "-c", "from narrowcast.cli import main; main()", *command]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def losses(out: Path) -> list[tuple[int, str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], key, r[key]) for r in records for key in ("loss", "val_loss") if key in r]


def test_a_killed_run_resumes_bit_for_bit(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the first checkpoint and in mid-course; the streams of random bits are part of a checkpoint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(inputs / "cache"))
    threads = torch.get_num_threads()
    try:
        assert run(arguments(inputs, tmp_path / "whole")) == 0
        expected = losses(tmp_path / "whole")
        assert [step for step, key, _ in expected if key == "loss"] == list(range(1, 31))
        out = tmp_path / "killed"
        killed_after(3, out, arguments(inputs, out))
        killed_after(14, out, arguments(inputs, out, "--resume"))
        assert run(arguments(inputs, out, "--resume")) == 0
    finally:
        torch.set_num_threads(threads)
    assert losses(out) == expected
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed"))
    assert a.read_bytes() == b.read_bytes()


def test_compiled_code_does_not_depend_on_the_batches_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller last batch of validation made sizes variables, but not in a run resumed behind it: other bits."""
    from transformers import LlamaConfig

    sizes: list[list[object]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        sizes.append([x for x in inputs if isinstance(x, torch.SymInt)])
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: whole(model, backend=backend, **how))
    model = compiled(from_config(LlamaConfig(**tiny.CONFIG | {"attention_dropout": 0.0}), 0))
    for rows in (2, 1, 3):
        model(input_ids=torch.zeros(rows, 8, dtype=torch.int64), use_cache=False)
    assert sizes == [[], [], []]
