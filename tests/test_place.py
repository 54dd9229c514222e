"""Where a run computes: options refused, names resolved, generators left alone."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.place import Place
from narrowcast.train import TrainConfig, train


def test_auto_is_what_the_machine_has() -> None:
    place = Place.of("auto", "auto")
    there = torch.cuda.is_available()
    expected = {"device": "cuda", "wide": "bfloat16"} if there else {"device": "cpu", "wide": "float32"}
    assert place.to_json() == expected


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: this torch sees no CUDA device; use --device cpu"):
        TrainConfig(device="cuda")


@pytest.mark.parametrize(("device", "wide", "said"), [("gpu", "auto", "--device"), ("cpu", "bf16", "--wide")])
def test_unknown_names_are_refused(device: str, wide: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Place.of(device, wide)


def test_seeded_draws_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with Place.of("cpu", "auto").seeded(7):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with Place.of("cpu", "auto").seeded(7):
        assert torch.equal(torch.rand(2), first)


def test_wide_bfloat16_changes_the_losses_and_keeps_float32_weights() -> None:
    short = {"steps": 2, "batch": 2, "context": 16, "eval_batches": 1, "device": "cpu"}
    wide = train(TrainConfig(recipe="fp32", **short))  # type: ignore[arg-type]
    narrow = train(TrainConfig(recipe="fp32", wide="bfloat16", **short))  # type: ignore[arg-type]
    assert wide.train_losses != narrow.train_losses
    assert narrow.final_val_loss == pytest.approx(wide.final_val_loss, rel=2e-2)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float32}


def test_what_repeats_itself_does_not_write_new_memory_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with Place(torch.device("cuda"), torch.float32).repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
