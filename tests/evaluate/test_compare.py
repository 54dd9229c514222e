"""What one model lost against another: known answers, noise floors, and which layer did it."""

import copy
import math

import pytest
import torch
from tests.ptq.architectures import TABLE, built
from torch import nn

from narrowcast.errors import InputError
from narrowcast.evaluate import Finding, compare_language, in_bfloat16, language_findings, layer_damage, predictions
from narrowcast.evaluate.classifier import compare_classifiers
from narrowcast.metrics import Interval, losses_by_row
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.pipeline import quantize_model

LLAMA = next(a for a in TABLE if a.name == "llama")


def text(rows: int = 6) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(1, 96, (rows, n), generator=g) for n in (20, 13)]


def logits(model):
    return [model(input_ids=batch[:, :-1], use_cache=False).logits for batch in text()]


def test_a_model_lost_nothing_against_itself_and_units_are_windows():
    model = built(LLAMA)
    found = compare_language(model, copy.deepcopy(model), text())
    assert found.units == 12
    ppl, kl, top = found.findings
    assert ppl.a == ppl.b and (ppl.change.low, ppl.change.high) == (0.0, 0.0)
    assert kl.b == pytest.approx(0, abs=1e-12) and top.b == 1.0
    assert {one.verdict for one in found.findings} == {"within the noise"}
    assert kl.floor > 0 and 0 < top.floor <= 1  # what bfloat16 does


def test_predictions_are_the_losses_and_the_pair_has_known_figures():
    a = built(LLAMA)
    b = copy.deepcopy(a)
    b.lm_head.weight.data.zero_()  # every token equally likely
    wide = predictions(a, text(), keep=True)
    batch = text()[0]
    assert torch.allclose(wide.losses[:6] / wide.tokens[:6], losses_by_row(a, batch))
    flat = predictions(b, text(), wide)
    ppl, kl, _ = language_findings(wide, flat)
    assert ppl.b == pytest.approx(96.0, rel=1e-6)
    entropy = torch.cat([torch.distributions.Categorical(logits=x.double()).entropy().flatten() for x in wide.logits])
    assert kl.b == pytest.approx(math.log(96) - float(entropy.mean()), rel=1e-6)
    with pytest.raises(InputError, match="no reference"):
        language_findings(wide, predictions(b, text()))
    with pytest.raises(InputError, match="no window"):
        predictions(a, [])


def test_verdicts_need_an_interval_and_more_than_bfloat16_does():
    def verdict(value, low, high, rounded, a=1.0):
        return Finding("x", a, 1.0 + value, Interval(value, low, high), rounded).verdict

    assert verdict(0.5, 0.4, 0.6, 0.01) == "worse"
    assert verdict(-0.5, -0.6, -0.4, 0.01) == "better"
    assert verdict(0.5, -0.1, 1.1, 0.0) == "within the noise"
    assert verdict(0.5, 0.4, 0.6, -0.7) == "within the noise"
    assert verdict(0.5, 0.4, 0.6, 0.4, a=None) == "worse"
    assert verdict(0.3, 0.2, 0.4, 0.4, a=None) == "within the noise"


def test_the_layer_that_was_damaged_is_found():
    a = built(LLAMA)
    b = copy.deepcopy(a)
    b.model.layers[1].mlp.up_proj.weight.data.mul_(0.5)
    b.model.layers[0].self_attn.q_proj.weight.data.mul_(1.001)
    found, what = layer_damage(a, b, logits)
    assert what == "layers"
    assert [one.name for one in found] == ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    assert found[0].sqnr_db == pytest.approx(6.02, abs=0.01) and found[1].sqnr_db == pytest.approx(60, abs=0.01)
    again = logits(a)
    assert all(torch.equal(x, y) for x, y in zip(again, logits(built(LLAMA)), strict=True))  # a is as it was


@pytest.mark.parametrize(("name", "what", "count"), [("mxfp4-mr-gptq", "layers", 14), ("w8a8-int8", "blocks", 2)])
def test_rotated_and_balanced_models_are_taken_apart_where_it_means_something(name, what, count):
    a = built(LLAMA)
    b = copy.deepcopy(a)
    batch = text()[0]
    quantize_model(b, recipe(name), [lambda: b(input_ids=batch, use_cache=False)])
    found, how = layer_damage(a, b, logits)
    assert how == what and len(found) == count
    assert all(one.sqnr_db is not None and 5 < one.sqnr_db < 60 for one in found)
    assert all(one.divergence > 0 for one in found)


def test_models_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="architecture"):
        layer_damage(built(LLAMA), built(next(a for a in TABLE if a.name == "opt")), logits)


def test_classifiers():
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(8, 3)
    x = torch.randn(200, 8, generator=g)
    labels = model(x).argmax(-1)
    worse = copy.deepcopy(model)
    worse.weight.data[0] += 1.0
    found = compare_classifiers(model, worse, [(x[:150], labels[:150]), (x[150:], labels[150:])])
    accuracy, kl, top = found.findings
    assert accuracy.a == 100.0 and accuracy.b == pytest.approx(100 * top.b) and accuracy.verdict == "worse"
    assert kl.b > kl.floor
    assert accuracy.change.value in accuracy.change
    with pytest.raises(InputError, match="no picture"):
        compare_classifiers(model, worse, [])


def test_the_bfloat16_copy_is_bfloat16_and_a_copy():
    model = nn.Linear(8, 3)
    kept = model.weight.detach().clone()
    rounded = in_bfloat16(model)
    assert torch.equal(rounded.weight, kept.bfloat16().float()) and torch.equal(model.weight, kept)
