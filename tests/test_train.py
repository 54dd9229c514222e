"""Training in memory: determinism, accumulation, divergence, bad models."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import narrowcast.train as training
from narrowcast.errors import CheckFailed, InputError, require_torch
from narrowcast.evaluate import evaluate_folder
from narrowcast.io import load_model
from narrowcast.metrics import bits_per_byte, next_token_loss
from narrowcast.train import TrainConfig, Trainer, train
from tests import tiny

DATA = Path(os.environ.get("NARROWCAST_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.write(tmp_path)
    return TrainConfig(
        recipe="fp32", data=tmp_path / "text", model=tmp_path / "config.json", steps=6, batch=4, context=32, vocab=300,
        warmup=2, eval_every=3, eval_batches=2, checkpoint_every=3,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", ["fp16", "fp8-delayed", "nvfp4"])
def test_two_runs_give_the_same_losses(config, recipe):
    one, two = (train(replace(config, recipe=recipe)) for _ in range(2))
    assert one.train_losses == two.train_losses
    assert one.val_losses == two.val_losses
    assert one.final_val_loss < one.val_losses[0][1]


def test_recipes_share_weights_and_batches(config):
    assert train(config).val_losses[0] == train(replace(config, recipe="fp32", lr=1.0, steps=1)).val_losses[0]
    wide, narrow = Trainer(config, None), Trainer(replace(config, recipe="mxfp4"), None)
    for (name, a), (_, b) in zip(wide.model.named_parameters(), narrow.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_accumulated_gradients_are_those_of_the_micro_batches(config):
    trainer = Trainer(replace(config, accumulate=3, clip=1e9), None)
    trainer.model.eval()  # no dropout: its masks differ between three small batches and a large one
    batches = [trainer.result.tokens.batch(0, 0, i, 4, 32) for i in range(3)]
    want = torch.autograd.grad(next_token_loss(trainer.model, torch.cat(batches)), list(trainer.model.parameters()))
    trainer.update()
    for p, g in zip(trainer.model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


def test_a_trained_model_is_a_hugging_face_folder(config, tmp_path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    result = train(replace(config, recipe="fp8-delayed"), out)
    loaded = AutoModelForCausalLM.from_pretrained(out / "model")
    for name, p in result.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), p), name
    found = evaluate_folder(out)
    assert found["recipe"] == "fp8-delayed"
    assert found["loss"] < result.val_losses[0][1]


@pytest.mark.parametrize("found_by", ["validation", "training"])
def test_the_first_non_finite_tensor_is_named(config, monkeypatch, found_by):
    original = training.build

    def broken(c):
        model, tokens = original(c)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.fill_(1e30)
            model.model.layers[0].mlp.gate_proj.weight.fill_(1e30)
        return model, tokens

    monkeypatch.setattr(training, "build", broken)
    if found_by == "training":
        monkeypatch.setattr(Trainer, "_validate", lambda trainer: None)
    with pytest.raises(CheckFailed, match=r"diverged at step 0: .*layers\.0\.mlp.* is not finite"):
        train(config)


def test_weights_that_are_not_finite_are_refused_by_name(config, tmp_path):
    out = tmp_path / "run"
    train(config, out)
    weights = load_file(out / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, out / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        load_model(out / "model")


def test_a_corpus_too_small_for_one_window_is_refused(config, tmp_path):
    (tmp_path / "little.txt").write_text("a few words")
    with pytest.raises(InputError, match="tokens"):
        train(replace(config, data=tmp_path / "little.txt"))


def test_a_run_is_not_resumed_with_another_model(config, tmp_path):
    train(config, tmp_path / "run")
    for changes, said in (
        ({"intermediate_size": 32}, r"down_proj.weight was \[32, 64\] then and is \[32, 32\] now"),
        ({"num_hidden_layers": 2}, r"layers\.1\.\S+ was absent then"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG | changes))
        with pytest.raises(InputError, match=said):
            train(config, tmp_path / "run", resume=True)


def test_an_old_torch_is_refused():
    require_torch("2.11.0+cu130")
    with pytest.raises(InputError, match=r"torch 2\.4\.1 is too old"):
        require_torch("2.4.1")


@pytest.mark.skipif(not (DATA / "lm-stories260K").is_dir(), reason="the stories260K weights (shared data) are not here")
def test_real_weights_give_the_published_bits_per_byte():
    """0.8132 bits per byte: 100 stories, begin token and 127 tokens each (the weights' own GOLDEN.json)."""
    from tokenizers import Tokenizer

    model, tokenizer_file = load_model(DATA / "lm-stories260K" / "hf")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    golden = json.loads((DATA / "lm-stories260K" / "GOLDEN.json").read_text())
    text = (DATA / "text" / "tinystories_val100.txt").read_text()
    stories = [s.strip() for s in text.split("<|endoftext|>") if s.strip()]
    total = tokens = size = 0.0
    model.eval()
    for story in stories:
        ids = tokenizer.encode(story, add_special_tokens=False).ids[:127]
        with torch.no_grad():
            total += float(next_token_loss(model, torch.tensor([[1, *ids]]))) * len(ids)
        tokens, size = tokens + len(ids), size + len(tokenizer.decode(ids).encode())
    assert len(stories) == 100
    assert tokens == golden["tokens"]
    assert total / tokens == pytest.approx(golden["nats_per_token"], abs=1e-5)
    assert bits_per_byte(total / tokens, int(tokens), int(size)) == pytest.approx(0.8132, abs=5e-5)
