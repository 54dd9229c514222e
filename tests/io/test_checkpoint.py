"""Checkpoints: atomic, checksummed, the last good one always there."""

import errno
import os

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.io import load_checkpoint, save_checkpoint, write_atomic

STATE = {"scaler": None}


def save(folder, step):
    return save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, STATE)


def test_the_newest_of_two_comes_back(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (10, 20, 30):
        save(tmp_path, step)
    step, tensors, state = load_checkpoint(tmp_path)
    assert (step, tensors["w"].tolist(), state) == (30, [30.0] * 3, STATE)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_wrong_checksum_is_refused_by_name(tmp_path):
    path = save(tmp_path, 10)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"step-00000010.*checksum"):
        load_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_good(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(tmp_path, 20)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)[0] == 10
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "no temporary file is left"


def test_tensors_without_their_manifest_do_not_exist(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20).with_suffix(".json").unlink()
    assert load_checkpoint(tmp_path)[0] == 10


def test_writing_replaces_whole_files(tmp_path):
    write_atomic(tmp_path / "a" / "b.json", b"old")
    write_atomic(tmp_path / "a" / "b.json", b"new")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"new"
    assert len(list((tmp_path / "a").iterdir())) == 1
