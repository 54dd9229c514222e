"""The main job on a toy: training is replaced by a function of (recipe, seed), everything around it is real."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import narrowcast as nc
from narrowcast import compare as module
from narrowcast.compare import CompareConfig, compare
from narrowcast.errors import CheckFailed, InputError
from narrowcast.train import StepInfo, TrainConfig
from narrowcast.workloads import tokenize

NAMES = ("fp32", "bf16", "fp8-rowwise", "mxfp4")
ROW_KEYS = {
    *("recipe", "summary", "paper", "diverged", "val_loss", "gap", "verdict", "bits_weights", "bits_operands"),
    *("model_bytes", "optimizer_bytes", "activation_bytes", "step_seconds", "h100_step_seconds"),
    *("h100_8b_step_seconds", "h100_note", "skipped_steps", "train", "val", "sites", "conversion"),
}


class Toy(nn.Module):
    """One linear layer between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=32)
        self.embed = nn.Embedding(16, 32)
        self.middle = nn.Linear(32, 32)
        self.lm_head = nn.Linear(32, 16)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(self.middle(self.embed(input_ids))))


class Tokens:
    """The little that compare asks of a tokenized corpus."""

    corpus = SimpleNamespace(
        name="toy", files=3, train=("a", "b"), validation=("c",), skipped=(), bytes=3, split="by hand", digest="0" * 64
    )
    train = validation = torch.arange(100) % 16
    vocab, seen, sampled = 16, 3, ""

    def validation_batches(self, count: int, batch: int, context: int) -> list[Tensor]:
        return [torch.arange(batch * (context + 1)).reshape(batch, context + 1) % 16] * count


#: final losses: bf16 scatters by 0.01 between seeds; fp8 is near it, mxfp4 far, fp32 at the same place
LOSSES = {"fp32": 2.0, "bf16": 2.0, "bf16+fp8-adam": 2.0, "fp8-rowwise": 2.005, "mxfp4": 2.5}
Fake = Callable[..., Any]


def trained(config: TrainConfig, on_step: Callable[[StepInfo], None]) -> SimpleNamespace:
    model = Toy()
    conversion = nc.convert(model, config.recipe, seed=config.seed)
    for step in range(1, config.steps + 1):
        on_step(StepInfo(step, config.steps, 3.0 / step, 1e-3, 0.1, 100.0))
    loss = LOSSES[config.recipe.partition("@")[0]] + 0.01 * ((config.seed % 3) - 1) * (config.seed > 0)
    return SimpleNamespace(
        model=model,
        conversion=conversion,
        final_val_loss=loss,
        seconds_per_step=0.1,
        skipped_steps=0,
        train_losses=[(s, 3.0 / s) for s in range(1, config.steps + 1)],
        val_losses=[(0, 3.0), (config.steps, loss)],
        probe_batch=Tokens().validation_batches(1, config.batch, config.context)[0],
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Replace training; return the list of (recipe, seed) that were trained."""
    made: list[tuple[str, int]] = []

    def fake_train(config: TrainConfig, tokens: Any, on_step: Callable[[StepInfo], None]) -> SimpleNamespace:
        made.append((config.recipe, config.seed))
        return trained(config, on_step)

    monkeypatch.setattr(module, "train", fake_train)
    monkeypatch.setattr(module, "build", lambda config: (Toy(), Tokens()))
    return made


def config(*names: str, **changes: Any) -> CompareConfig:
    return CompareConfig(TrainConfig(steps=3, batch=2, context=16), names or NAMES, **{"seeds": 2, **changes})


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {row["recipe"]: row for row in report["rows"]}


def test_report_has_every_field_and_equals_its_file(calls: list[Any], tmp_path: Path) -> None:
    report = compare(config(), tmp_path / "out", command="narrowcast compare --steps 3")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["kind"] == "narrowcast-compare"
    assert report["version"] == 1
    assert report["command"] == "narrowcast compare --steps 3"
    assert {"python", "torch", "narrowcast", "transformers", "cpu", "threads", "date"} <= report["versions"].keys()
    assert {"name", "files", "train_files", "validation_files", "train_tokens", "split"} <= report["corpus"].keys()
    assert report["model"]["parameters"] == sum(p.numel() for p in Toy().parameters())
    assert report["training"]["tokens_per_step"] == 32
    assert "recipe" not in report["training"]
    assert [row["recipe"] for row in report["rows"]] == list(NAMES)
    assert all(row.keys() == ROW_KEYS for row in report["rows"])
    assert {c["name"] for c in report["gpu"]["constants"]} >= {"fp8", "bandwidth", "launch"}


def test_the_baseline_runs_under_every_seed_and_the_others_under_one(calls: list[Any], tmp_path: Path) -> None:
    compare(config(), tmp_path / "out")
    assert calls == [("bf16", 0), ("bf16", 1), ("bf16", 2), ("fp32", 0), ("fp8-rowwise", 0), ("mxfp4", 0)]


def test_gaps_are_judged_by_the_noise(calls: list[Any], tmp_path: Path) -> None:
    report = compare(config(), tmp_path / "out")
    noise, rows = report["noise"], by_name(report)
    assert noise["seeds"] == [0, 1, 2]
    assert noise["losses"] == pytest.approx([2.0, 2.0, 2.01])
    assert noise["half_width"] == pytest.approx(4.3027 * noise["std"] * math.sqrt(4 / 3), rel=1e-4)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "fp32": "not distinguishable",
        "bf16": "baseline",
        "fp8-rowwise": "not distinguishable",
        "mxfp4": "worse",
    }
    assert rows["bf16"]["gap"] == pytest.approx(2.0 - noise["mean"])
    assert rows["mxfp4"]["gap"] == pytest.approx(2.5 - noise["mean"])


def test_every_row_carries_its_sites_and_conversion(calls: list[Any], tmp_path: Path) -> None:
    rows = by_name(compare(config(), tmp_path / "out"))
    assert rows["fp32"]["sites"] == []
    assert [s["operand"] for s in rows["mxfp4"]["sites"]] == list(nc.OPERANDS)
    assert {c["name"]: c["became"] for c in rows["mxfp4"]["conversion"]} == {
        "embed": "wide",
        "middle": "narrow",
        "lm_head": "wide",
    }
    assert rows["mxfp4"]["bits_weights"] == 4.25
    assert rows["fp32"]["model_bytes"] == 2 * rows["bf16"]["model_bytes"]


def test_a_recipe_with_an_optimizer_stands_beside_its_own(calls: list[Any], tmp_path: Path) -> None:
    names = ("mxfp4", "fp8-rowwise@hopper-fp8", "bf16+fp8-adam", "bf16")
    rows = by_name(compare(config(*names), tmp_path / "out"))
    assert list(rows) == ["bf16", "bf16+fp8-adam", "fp8-rowwise@hopper-fp8", "mxfp4"]
    weights = 16 * 32 + 32 * 32 + 32 * 16
    assert rows["bf16"]["optimizer_bytes"] - rows["bf16+fp8-adam"]["optimizer_bytes"] == 8 * weights - 3 * 12


def test_no_names_means_every_recipe(calls: list[Any]) -> None:
    runs = CompareConfig(TrainConfig()).runs
    assert {run.recipe for run in runs} == set(nc.recipes())
    assert [run.seed for run in runs if run.recipe == "bf16"] == [0, 1, 2, 3, 4]


def test_a_baseline_that_was_not_named_is_there_all_the_same(calls: list[Any], tmp_path: Path) -> None:
    rows = by_name(compare(config("mxfp4", baseline="fp32"), tmp_path / "out"))
    assert rows["fp32"]["verdict"] == "baseline"
    assert set(rows) == {"fp32", "mxfp4"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ("bf16", "mxfp4", "mxfp4")}, "mxfp4 given twice"),
        ({"recipes": ("fp8-rowise",)}, "unknown recipe 'fp8-rowise'; nearest: fp8-rowwise"),
        ({"baseline": "bf61"}, "unknown recipe 'bf61'; nearest: bf16"),
        ({"seeds": 1}, "at least 2 further baseline seeds, found 1"),
    ],
)
def test_bad_settings_are_refused_at_birth(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompareConfig(TrainConfig(), **changes)


def test_bad_data_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = CompareConfig(TrainConfig(data=tmp_path / "missing"), ("mxfp4",))
    with pytest.raises(InputError, match="no such file or folder"):
        compare(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_diverges_is_a_row(calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake_train(run: TrainConfig, tokens: Any, on_step: Callable[[StepInfo], None]) -> SimpleNamespace:
        if run.recipe == "mxfp4":
            on_step(StepInfo(1, 3, 5.0, 1e-3, 0.1, 100.0))
            raise CheckFailed("recipe mxfp4 diverged at step 2: the output of middle (Linear) is not finite")
        return trained(run, on_step)

    monkeypatch.setattr(module, "train", fake_train)
    row = by_name(compare(config(), tmp_path / "out"))["mxfp4"]
    assert row.keys() == ROW_KEYS
    assert row["verdict"] == "diverged"
    assert "diverged at step 2" in row["diverged"]
    assert (row["val_loss"], row["gap"], row["step_seconds"]) == (None, None, None)
    assert row["train"] == [[1, 5.0]]
    assert row["bits_weights"] == 4.25


def test_a_final_loss_that_is_not_finite_is_a_divergence(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LOSSES, "mxfp4", math.nan)
    row = by_name(compare(config(), tmp_path / "out"))["mxfp4"]
    assert "not finite" in row["diverged"]
    assert row["val_loss"] is None


def test_a_baseline_that_diverges_ends_the_comparison(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LOSSES, "bf16", math.nan)
    with pytest.raises(CheckFailed, match="the baseline itself diverged under seed 0"):
        compare(config(), tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("seconds", "versions")}


def test_a_killed_comparison_makes_only_the_runs_that_are_missing(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = compare(config(), tmp_path / "whole")
    killed_at = len(calls) + 4

    def killed(run: TrainConfig, tokens: Any, on_step: Callable[[StepInfo], None]) -> SimpleNamespace:
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append((run.recipe, run.seed))
        return trained(run, on_step)

    monkeypatch.setattr(module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(config(), tmp_path / "out")
    assert len(list((tmp_path / "out" / "results").iterdir())) == 4
    killed_at = -1
    report = compare(config(), tmp_path / "out", resume=True)
    assert calls[-2:] == [("fp8-rowwise", 0), ("mxfp4", 0)]
    assert len(calls) == 12
    # sites depend on the toy's random weights
    for made in (whole, report):
        for row in made["rows"]:
            del row["sites"]
    assert without_times(report) == without_times(whole) | {"rows": json.loads(json.dumps(whole["rows"]))}


def test_resume_refuses_other_settings_and_names_them(calls: list[Any], tmp_path: Path) -> None:
    compare(config(), tmp_path / "out")
    with pytest.raises(InputError, match=r"seeds: 2 then, 3 now"):
        compare(config(seeds=3), tmp_path / "out", resume=True)


def test_an_existing_folder_needs_a_flag(calls: list[Any], tmp_path: Path) -> None:
    compare(config(), tmp_path / "out")
    with pytest.raises(InputError, match="--resume"):
        compare(config(), tmp_path / "out")
    count = len(calls)
    compare(config(), tmp_path / "out", overwrite=True)
    assert len(calls) == 2 * count


def test_a_damaged_result_file_is_named(calls: list[Any], tmp_path: Path) -> None:
    compare(config(), tmp_path / "out")
    (tmp_path / "out" / "results" / "mxfp4-seed0.json").write_text('{"recipe": ')
    with pytest.raises(InputError, match=r"mxfp4-seed0\.json: no result of a run"):
        compare(config(), tmp_path / "out", resume=True)


def test_progress_counts_runs_and_steps(calls: list[Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int, str, int]] = []
    compare(config(), tmp_path / "out", on_step=lambda n, runs, name, at: seen.append((n, runs, name, at.step)))
    assert len(seen) == 6 * 3
    assert seen[0] == (0, 6, "bf16 (seed 0)", 1)
    assert seen[-1] == (5, 6, "mxfp4 (seed 0)", 3)


def test_the_probe_uses_the_loss_scale_that_training_ended_with() -> None:
    fp16 = nc.recipe("fp16")
    assert module._loss_scale(fp16, 0) == 65536
    assert module._loss_scale(fp16, 3) == 8192
    assert module._loss_scale(nc.recipe("bf16"), 3) == 1


def test_the_whole_way_on_a_tiny_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real training, nothing replaced: two recipes, three seeds, two updates of a model of a few thousand weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        (data / f"{i}.txt").write_text(f"{i} small words make a small text. " * 60)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"model_type": "llama", "vocab_size": 300, "num_key_value_heads": 2, **shape}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    training = TrainConfig(
        data=data, model=tmp_path / "config.json", steps=2, batch=2, context=16, vocab=300, eval_batches=1, warmup=1
    )
    read: list[Any] = []
    monkeypatch.setattr("narrowcast.train.tokenize", lambda *given: read.append(given) or tokenize(*given))
    report = compare(CompareConfig(training, ("bf16", "fp8-delayed", "fp16"), seeds=2), tmp_path / "out")
    assert len(read) == 1  # for all runs
    rows = by_name(report)
    assert rows["bf16"]["verdict"] == "baseline"
    assert [step for step, _ in rows["fp16"]["train"]] == [1, 2]
    assert len(rows["fp8-delayed"]["sites"]) == 7 * 6
    assert rows["fp8-delayed"]["model_bytes"] < rows["bf16"]["model_bytes"]
    assert math.isfinite(report["noise"]["half_width"])
    assert report["model"]["layers"] == 1
