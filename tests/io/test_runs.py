"""Run folders: who may write where."""

import pytest

from narrowcast.errors import InputError
from narrowcast.io import open_run, truncate_metrics


def test_a_folder_is_taken_only_when_asked_for(tmp_path):
    out = tmp_path / "run"
    open_run(out, {"lr": 1.0}, resume=False, overwrite=False)
    with pytest.raises(InputError, match="--resume"):
        open_run(out, {"lr": 1.0}, resume=False, overwrite=False)
    open_run(out, {"lr": 1.0}, resume=True, overwrite=False)
    (out / "metrics.jsonl").write_text("x")
    open_run(out, {"lr": 2.0}, resume=False, overwrite=True)
    assert not (out / "metrics.jsonl").exists()


def test_resuming_with_other_settings_lists_the_differences(tmp_path):
    open_run(tmp_path / "run", {"lr": 1.0, "steps": 5}, resume=False, overwrite=False)
    with pytest.raises(InputError, match=r"lr.*1\.0.*2\.0"):
        open_run(tmp_path / "run", {"lr": 2.0, "steps": 5}, resume=True, overwrite=False)


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no narrowcast run"):
        open_run(tmp_path, {}, resume=False, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_metrics_after_the_checkpoint_and_half_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert [r["step"] for r in truncate_metrics(path, 1)] == [1]
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
