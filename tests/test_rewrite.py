"""Rewriting safetensors files: what is on the grid, what stays, what is refused; as a function and as a verb."""

import json
import math
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import narrowcast as nc
from narrowcast.analysis.loss import sqnr_db
from narrowcast.cli import run
from narrowcast.errors import InputError
from narrowcast.io import open_tensors
from narrowcast.rewrite import Job, restore, rewrite, rewrite_codes


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "half.weight": torch.randn(8, 40, dtype=torch.float64).bfloat16(),
        "ids": torch.arange(5),
        "norm.bias": torch.randn(7).double(),
        "scalar": torch.tensor(0.3),
        "empty": torch.empty(0, 4),
        "small": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "who": "me"})
    return tmp_path / "in.safetensors"


CASTS = ("e2m1fn", "mxfp4", "nvfp4", "int4/4x8/fp32", "e4m3fn/row/fp32/stochastic", "e2m1fn/1x16/e8m0/stochastic/hadamard16-fresh")  # fmt: skip


@pytest.mark.parametrize("spelling", CASTS)
def test_values_and_codes_agree_and_everything_else_stays(source, tmp_path, spelling):
    job = Job(nc.cast(spelling), seed=3)
    values, codes = tmp_path / "values.safetensors", tmp_path / "codes.safetensors"
    rows = rewrite(source, values, job)
    rewrite_codes(source, codes, job)
    old, new, back = load_file(source), load_file(values), restore(codes)
    assert old.keys() == new.keys() == back.keys()
    for name, tensor in old.items():
        assert new[name].dtype == back[name].dtype == tensor.dtype and new[name].shape == tensor.shape
        assert torch.equal(
            new[name].view(torch.uint8) if tensor.dim() else new[name],
            back[name].view(torch.uint8) if tensor.dim() else back[name],
        )
    with safe_open(values, "pt") as file:
        assert {"format": "pt", "who": "me"}.items() <= file.metadata().items()
    copied = {row.name: row.why for row in rows if row.became == "copied"}
    assert copied == {"ids": "not floating point", "empty": "empty", "small": "narrow already"}


def test_the_stated_loss_is_that_of_the_file(source, tmp_path):
    target = tmp_path / "out.safetensors"
    rows = {row.name: row for row in rewrite(source, target, Job(nc.cast("int8/row/fp32")))}
    old, new = load_file(source), load_file(target)
    for name in ("conv.weight", "half.weight", "norm.bias"):
        error = (old[name].double() - new[name].double()).abs().max()
        assert rows[name].loss.max_error == pytest.approx(float(error))
        assert rows[name].loss.sqnr_db == pytest.approx(sqnr_db(old[name], new[name]))
    assert rows["half.weight"].again > 0.5 and rows["conv.weight"].again == 0  # bfloat16 cannot hold k * scale


def test_convolutions_are_tiled_along_all_that_they_sum_over(source, tmp_path):
    target = tmp_path / "out.safetensors"
    rewrite(source, target, Job(nc.cast("int4/row/fp32")))
    kernel = load_file(source)["conv.weight"]
    expected = nc.cast("int4/row/fp32").apply(kernel.flatten(1)).view(kernel.shape)
    assert torch.equal(load_file(target)["conv.weight"], expected)


def test_saturation_underflow_and_overflow_are_told(tmp_path):
    save_file({"w": torch.tensor([[1e6, 500.0, 1e-9, 1.0]])}, tmp_path / "in.safetensors")
    (row,) = rewrite(tmp_path / "in.safetensors", tmp_path / "a", Job(nc.cast("e4m3fn")))
    assert (row.loss.saturate, row.loss.underflow, row.broken) == (0.5, 0.25, 0)
    (row,) = rewrite(tmp_path / "in.safetensors", tmp_path / "b", Job(nc.cast("float16")))
    assert row.broken == 1 and row.loss.sqnr_db is None


def test_what_is_kept_is_copied_bit_for_bit(source, tmp_path):
    rows = {
        r.name: r for r in rewrite(source, tmp_path / "out", Job(nc.cast("e2m1fn"), keep=("norm.*", "half.weight")))
    }
    assert rows["norm.bias"].why == "kept by 'norm.*'"
    assert torch.equal(load_file(tmp_path / "out")["norm.bias"], load_file(source)["norm.bias"])


def test_a_failed_write_leaves_the_old_file(source, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        rewrite(source, target, Job(nc.cast("e2m1fn")))
    assert target.read_bytes() == b"before"
    assert {p.name for p in tmp_path.iterdir()} == {"in.safetensors", "out.safetensors"}


def test_a_file_may_replace_itself(source):
    expected = nc.cast("e2m1fn").apply(load_file(source)["conv.weight"])
    rewrite(source, source, Job(nc.cast("e2m1fn")))
    assert torch.equal(load_file(source)["conv.weight"], expected)


def foreign(kind: str, path) -> None:
    tensor = {"w": torch.randn(2, 2)}
    match kind:
        case "zip":
            torch.save(tensor, path)
        case "old":
            torch.save(tensor, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps({"w": 1}))
        case "text":
            path.write_text("hello, this is no tensor at all, only text")
        case "truncated":
            save_file(tensor, path)
            path.write_bytes(path.read_bytes()[:-3])
        case "none":
            save_file({}, path)
        case "nan":
            save_file(
                {"fine": torch.ones(2), "layer.0": torch.tensor([1.0, math.nan]), "layer.1": torch.tensor([math.inf])},
                path,
            )
        case "folder":
            path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zip", "a zip archive, as torch.save writes it (a pickle inside), refused unread"), ("old", "a pickle, refused unread"),
        ("pickle", "a pickle, refused unread"), ("text", "truncated or not safetensors"), ("truncated", "truncated or not safetensors"),
        ("none", "holds no tensors"), ("nan", "NaN or infinite values in layer.0, layer.1;"), ("folder", "a folder, expected a safetensors file"),
        ("missing", "no such file"),
    ],
)  # fmt: skip
def test_bad_files_are_one_clear_line(kind, message, tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    foreign(kind, path)
    assert run(["formats", "convert", str(path), "--to", "mxfp4"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert len(list(tmp_path.iterdir())) == (kind != "missing")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "mxfp5"], "nearest: mxfp"), (["--to", "int8", "--tile", "huge"], "--tile: unknown tile 'huge'"),
        (["--to", "int8", "--keep", "nothing.*"], "matches no tensor"), (["--to", "e4m3fn/tensor/fp32-delayed16"], "needs earlier steps"),
        (["--to", "int8", "--out", "."], "expected the name of the new file"), ([], "--to"),
    ],
)  # fmt: skip
def test_bad_options_are_one_clear_line(args, message, source, capsys):
    assert run(["formats", "convert", str(source), *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_the_verb_says_what_each_tensor_lost(source, capsys):
    words = ["formats", "convert", str(source), "--to", "int8", "--tile", "1x32"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "4 of 7 tensors narrowed to int8/1x32/fp32/nearest-even" in text
    assert "copied as it is: ids (int64: not floating point)" in text
    assert (source.parent / "in-int8-1x32.safetensors").is_file()
    assert run(words) == 2
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert run([*words, "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["tensors"]] == list(open_tensors(source).names)
    assert found["total"]["narrowed"] == 4 and 40 < found["total"]["sqnr_db"] < 50


def test_codes_take_the_bytes_they_should(tmp_path, capsys):
    save_file({"w": torch.randn(64, 64)}, tmp_path / "in.safetensors")
    assert run(["formats", "convert", str(tmp_path / "in.safetensors"), "--to", "mxfp4", "--codes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["bytes"] == 64 * 64 * 4.25 / 8
    with pytest.raises(InputError, match="holds no codes of ours"):
        restore(tmp_path / "in.safetensors")
