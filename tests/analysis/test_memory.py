"""Out of memory: categories counted by hand, the advice, and a run that ends in one line with its checkpoint kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.analysis.test_footprint import TOKENS, Toy

import narrowcast.train as training
from narrowcast.analysis.footprint import activation_bytes
from narrowcast.analysis.memory import Shares, explained, out_of_memory, shares
from narrowcast.cli import run

GIB = 1 << 30
SAID = "CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 is free."


def test_each_category_is_counted() -> None:
    model = Toy()
    count = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    found = shares(model, optimizer, None, TOKENS, 16)
    assert (found.weights, found.gradients, found.state) == (4 * count, 4 * count, 8 * count)
    assert found.saved == activation_bytes(model, TOKENS[:1], 16) * 2
    narrow = shares(model, optimizer, "fp8-adam-blocks", TOKENS, 16)
    assert 4.0 * count < narrow.state < 4.2 * count
    model(TOKENS).logits.sum().backward()
    optimizer.step()
    assert shares(model, optimizer, None, TOKENS, 16).state == 8 * count + 4 * len(list(model.parameters()))
    out_of_memory(model, optimizer, None, TOKENS, torch.bfloat16, SAID)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ((1, 1, 2, 640, 0), "saved activations: lower --batch from 4096 to about 256 (with --accumulate 16 for"),
        ((1, 1, 2, 8, 400), "workspace: lower --batch from 4096 to about 512"),
        ((30, 30, 20, 1, 0), "weights: train a smaller --model"),
        ((16, 16, 48, 1, 0), "optimizer state: keep it narrow (--recipe RECIPE+fp8-adam-blocks)"),
        ((24, 24, 30, 400000, 0), "saved activations: lower --context"),
    ],
)
def test_the_largest_category_decides_what_to_lower(sizes: tuple[int, ...], advice: str) -> None:
    said = explained(Shares(*(GIB * n for n in sizes), total=80 * GIB, batch=4096), SAID, torch.device("cuda"))
    assert f"most of it is {advice}" in said
    assert "out of memory on cuda (80.00 GiB, 16.00 GiB more wanted): an update takes about, in GiB, weights " in said
    assert ("workspace" in said) == (sizes[4] > 0)


def test_a_run_that_runs_out_ends_in_one_line_and_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.write(tmp_path)
    command = [
        "train", "--recipe", "fp8-rowwise", "--steps", "6", "--batch", "4", "--context", "32", "--vocab", "300",
        "--checkpoint-every", "2", "--device", "cpu", "--model", str(tmp_path / "config.json"),
        "--data", str(tmp_path / "text"),
    ]  # fmt: skip
    assert run([*command, "--out", str(tmp_path / "whole")]) == 0
    original = training.Trainer.update

    def update(trainer: training.Trainer) -> Any:
        if trainer.step == 3:
            raise torch.OutOfMemoryError(SAID)
        return original(trainer)

    out = str(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "update", update)
        capsys.readouterr()
        assert run([*command, "--out", out]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: step 4: out of memory on cpu (")
    assert said.err.count("\n") == 1
    assert said.err.endswith(f"; the last checkpoint in {out} is good\n")
    assert run([*command, "--out", out, "--resume"]) == 0
    whole, resumed = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "out"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_any_other_verb_that_runs_out_says_so_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def load(verb: str) -> Any:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr("narrowcast.cli.load", load)
    assert run(["evaluate", "x"]) == 2
    assert capsys.readouterr().err == f"error: {SAID}; use a smaller model or batch, or --device cpu\n"
