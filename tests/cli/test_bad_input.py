"""Whatever is wrong with the data, the model or the run folder: one line, exit status 2, and nothing half-written."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

import narrowcast.cli as cli
import narrowcast.train as training
from narrowcast.io import save_checkpoint

SMALL = ["--steps", "4", "--batch", "4", "--context", "32", "--vocab", "300", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``text``, ``config.json`` and a finished run ``run`` (under fp8-delayed)."""
    folder = tiny.write(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert cli.run(train(folder, folder / "run")) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--recipe", "fp8-delayed", *SMALL, "--data", str(folder / "text"),
        "--model", str(folder / "config.json"), "--out", str(out), *more,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and "cache" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def refused(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run ``args`` and check the line, the status, and that no file of this folder was touched."""
    before = contents(Path())
    capsys.readouterr()
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert contents(Path()) == before


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return spoil


def configured(**settings: object) -> Callable[[Path], None]:
    return lambda model: (model / "config.json").write_text(json.dumps({**tiny.CONFIG, **settings})) and None


def written(name: str, content: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / name).write_text(content)

    return spoil


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda m: shutil.rmtree(m), "no such file or folder"),
    "no config": (lambda m: (m / "config.json").unlink(), "has no config.json"),
    "a config that is no JSON": (lambda m: (m / "config.json").write_text("{"), "not a JSON config"),
    "a config that is a list": (
        lambda m: (m / "config.json").write_text("[1]"),
        "holds a list, expected a JSON object",
    ),
    "a config without a type": (lambda m: (m / "config.json").write_text("{}"), "has no model_type"),
    "an unknown type": (configured(model_type="martian"), "no language model of model_type 'martian'"),
    "no language model": (configured(model_type="vit"), "no language model of model_type 'vit'"),
    "a setting of another type": (configured(hidden_size="x"), "'hidden_size' expected int"),
    "settings that do not fit": (configured(hidden_size=33), "not a multiple of the number of attention heads"),
    "no heads": (configured(num_attention_heads=0), "no language model of model_type 'llama'"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "found no weights; expected model.safetensors"),
    "a pickle": (written("pytorch_model.bin", "x"), "found pytorch_model.bin, a pickle, which is refused unread"),
    "truncated weights": (lambda m: os.truncate(m / "model.safetensors", 5000), "truncated or not safetensors"),
    "an empty weight file": (lambda m: os.truncate(m / "model.safetensors", 0), "truncated or not safetensors"),
    "a shard that is missing": (
        written("model.safetensors.index.json", '{"weight_map": {"a": "x.safetensors"}}'),
        "1 of 1 shards missing, first x.safetensors",
    ),
    "an index that is no JSON": (written("model.safetensors.index.json", "{"), "not a JSON index"),
    "an index of nothing": (written("model.safetensors.index.json", "[]"), "has no weight_map"),
    "a NaN": (weights(lambda w: w["model.norm.weight"][:1].fill_(torch.nan)), "model.norm.weight holds NaN"),
    "an infinity": (weights(lambda w: w["lm_head.weight"][:1].fill_(torch.inf)), "lm_head.weight holds NaN or inf"),
    "a tensor too few": (weights(lambda w: w.pop("model.norm.weight")), "lacks model.norm.weight"),
    "a tensor too many": (weights(lambda w: w.update(extra=torch.ones(1))), "holds unknown extra"),
    "another shape": (weights(lambda w: w.update({"model.norm.weight": torch.ones(5)})), "for model.norm.weight"),
    "a tokenizer that is none": (lambda m: (m / "tokenizer.json").write_text("{}"), "not a tokenizer.json"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_cannot_be_used(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = MODELS[case]
    spoil(here / "run" / "model")
    refused(["train", *SMALL, "--data", "text", "--model", "run/model", "--out", "new"], message, capsys)
    refused(["evaluate", "run/model", "--data", "text"], message, capsys)


def test_evaluating_what_is_no_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["evaluate", "text"], "has no config.json", capsys)
    (here / "run" / "model" / "tokenizer.json").unlink()
    refused(["evaluate", "run/model", "--data", "text"], "has no tokenizer.json", capsys)
    shutil.rmtree(here / "run" / "model")
    refused(["evaluate", "run"], "has no finished model yet", capsys)


DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda d: None, "no such file or folder"),
    "an empty folder": (lambda d: d.mkdir(), "the folder is empty"),
    "an empty file": (lambda d: d.touch(), "none of 1 files is readable UTF-8 text; first data: empty"),
    "a binary file": (lambda d: d.write_bytes(b"\xff\xfe\x00"), "binary: not UTF-8 text"),
    "text with NUL bytes": (lambda d: d.write_bytes(b"a\0b"), "binary: holds NUL bytes"),
    "a folder of binaries": (lambda d: (d.mkdir(), (d / "a").write_bytes(b"\xff")), "none of 1 files is readable"),
    "a folder of broken links": (lambda d: (d.mkdir(), (d / "a").symlink_to("nowhere")), "first a: broken link"),
    "too little text": (lambda d: d.write_text("a few words"), "give more text or a smaller --context"),
}


@pytest.mark.parametrize("verb", ["train", "compare"])
@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(case: str, verb: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = DATA[case]
    make(here / "data")
    refused([verb, "--data", "data", "--model", "config.json", "--out", "new"], message, capsys)


def test_what_is_no_text_is_passed_over_and_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "text" / "a.bin").write_bytes(b"\xff\xfe")
    (here / "text" / "broken").symlink_to("nowhere")
    os.mkfifo(here / "text" / "pipe")
    assert cli.run(train(here, here / "new")) == 0
    out = " ".join(capsys.readouterr().out.split())  # a long path wraps the line
    assert "4 files, split by file: 1 of 4 validate" in out
    assert "3 files passed over, first a.bin (binary: not UTF-8 text)" in out


def test_a_run_folder_is_not_written_to_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(train(here, here / "run"), "exists already; continue it with --resume or replace it with --over", capsys)
    refused(train(here, here / "run", "--resume", "--overwrite"), "exclude each other", capsys)
    refused(train(here, here / "text", "--overwrite"), "no narrowcast run", capsys)
    refused(train(here, here / "config.json"), "is a file", capsys)
    refused(["compare", "--data", "text", "--out", "run"], "exists already", capsys)


def test_resuming_with_other_settings_lists_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = train(here, here / "run", "--resume", "--lr", "0.1", "--seed", "5")
    settings = json.loads((here / "run" / "settings.json").read_text())
    settings["data"], settings["model"] = str(here / "text"), str(here / "config.json")
    (here / "run" / "settings.json").write_text(json.dumps(settings))
    refused(other, "settings differ (lr: 0.004 then, 0.1 now; seed: 0 then, 5 now)", capsys)
    (here / "text" / "0.txt").write_text("other words\n" * 300)
    refused(train(here, here / "run", "--resume"), "settings differ (corpus: ", capsys)
    (here / "run" / "settings.json").write_text("{")
    refused(train(here, here / "run", "--resume"), "cannot be read", capsys)


def test_a_checkpoint_with_a_wrong_checksum_names_the_way_back(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    newest = made / "run" / "checkpoints" / "step-00000004.safetensors"
    good = newest.read_bytes()
    newest.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(train(made, made / "run", "--resume"), "wrong checksum", capsys)
    newest.write_bytes(good)
    assert cli.run(train(made, made / "run", "--resume")) == 0


def test_a_full_disk_leaves_the_old_checkpoint_good(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the second checkpoint is written, no file may grow beyond 100 kB."""

    def cramped(folder: Path, step: int, *rest: Any) -> Path:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if step == 4 else limits[1], limits[1]))
        try:
            return save_checkpoint(folder, step, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(training, "save_checkpoint", cramped)
    assert cli.run(train(here, here / "full")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "step-00000004.safetensors: " in err
    assert "File too large" in err
    left = sorted(p.name for p in (here / "full" / "checkpoints").iterdir())
    assert left == ["step-00000002.json", "step-00000002.safetensors"]
    monkeypatch.undo()
    assert cli.run(train(here, here / "full", "--resume")) == 0
    assert contents(here / "full" / "model") == contents(here / "run" / "model")


def test_a_duplicate_recipe_and_too_few_seeds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["compare", "--data", "text", "--out", "new"]
    refused([*compare, "--recipes", "mxfp4,bf16,mxfp4"], "--recipes: mxfp4 given twice", capsys)
    refused([*compare, "--recipes", "mxfp4,bf61"], "unknown recipe 'bf61'; nearest: bf16", capsys)
    refused([*compare, "--seeds", "1"], "at least 2 further baseline seeds, found 1", capsys)
    refused([*compare, "--steps", "0"], "--steps: expected at least 1, found 0", capsys)


@pytest.mark.parametrize("verb", ["formats", "train", "evaluate"])
def test_an_old_torch(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    refused([verb], "torch 2.4.1+cpu is too old: expected 2.11 or newer; pip install -U torch", capsys)


def test_refused_runs_leave_no_tensorboard_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(here.iterdir())
    refused(train(here, here / "run", "--tensorboard"), "exists already", capsys)
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "-1"], "--threads: expected 0 or more, found -1"),
        (["--seed", "-5"], "--seed: expected 0 to 2**63 - 1, found -5"),
        (["--lr", "inf"], "--lr and --clip must be positive"),
        (["--lr", "nan"], "--lr and --clip must be positive"),
        (["--schedule", "cosin"], "unknown schedule 'cosin'; nearest: cosine"),
        (["--backend", "native"], "backend 'native' cannot run here: device cpu has no narrow tensor cores"),
        (["--context", "65"], "--context 65: the model reaches 64 tokens"),
        (["--vocab", "100"], "--vocab: expected at least 257"),
    ],
)
def test_settings_out_of_range(
    options: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(train(here, here / "new", *options), message, capsys)


@pytest.mark.parametrize("option", ["--window", "--limit", "--batch"])
def test_evaluating_nothing(option: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["evaluate", "run", option, "-1"], f"{option}: expected at least", capsys)
