"""What several studies share: double and hybrid rounding, divergence, outlier channels, the real language model."""

import copy
import math

import pytest
import torch
from tests.tiny import CONFIG
from torch import nn

import narrowcast as nc
from narrowcast.analysis.tensors import inputs_of
from narrowcast.errors import InputError
from narrowcast.metrics import top_divergence
from narrowcast.models.outliers import inject_outliers
from narrowcast.recipes import recipe
from narrowcast.studies import Setting, data_folder
from narrowcast.studies.fp8_formats import reference, table
from narrowcast.studies.int_versus_fp import published
from narrowcast.studies.mr_gptq import widened
from narrowcast.studies.stories import PUBLISHED, load_stories
from narrowcast.studies.through import Hybrid, Through
from narrowcast.train import TrainConfig, train

real = pytest.mark.skipif(data_folder() is None, reason="NARROWCAST_DATA names no folder of real data")


def test_double_rounding_is_not_rounding():
    twice = Through(nc.format("bfloat16"), nc.format("int8_full"))
    x = torch.tensor([127.3, -127.3, 0.4999, 5.0])  # bfloat16 makes 127.5 of 127.3, which is a tie
    assert twice.round(x).tolist() == [127.0, -128.0, 0.0, 5.0]
    assert nc.format("int8_full").round(x).tolist() == [127.0, -127.0, 0.0, 5.0]
    assert torch.equal(twice.decode(twice.encode(x)), twice.round(x))
    assert str(twice) == "int8_full-through-bfloat16"


def test_inner_channels_of_zeros_change_no_logit():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**CONFIG, "attention_dropout": 0.0, "intermediate_size": 43})
    model, ids = AutoModelForCausalLM.from_config(config).double().eval(), torch.arange(32)[None]
    wide = widened(model, 64).double()
    assert [tuple(p.weight.shape) for p in wide.model.layers[0].mlp.children() if hasattr(p, "weight")] == [
        (64, 32), (64, 32), (32, 64)]  # fmt: skip
    assert (wide(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-14
    assert model.model.layers[0].mlp.down_proj.weight.shape == (32, 43)


@pytest.mark.parametrize(
    ("x", "published_as", "strict"),
    [
        (17.0, 20.0, 20.0), (18.0, 20.0, 20.0), (300.0, 384.0, 384.0), (16.001, 16.0, 16.0), (20.0, 24.0, 20.0), (3.1, 3.0, 3.0),
        (-17.0, -20.0, -20.0), (0.0, 0.0, 0.0), (2.0**-25, 0.0, 0.0), (1.5 * 2.0**-23, 2.0**-22, 2.0**-22),
        (2.0**16, math.inf, math.inf), (math.inf, math.inf, math.inf),
    ],
)  # fmt: skip
def test_hybrid_rounding_is_as_published(x, published_as, strict):
    assert float(Hybrid(strict=False).round(torch.tensor(x))) == published_as
    assert float(Hybrid().round(torch.tensor(x))) == strict


def test_hybrid_rounding_keeps_nan_and_lands_on_the_grid():
    fmt = nc.format("hif8")
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-7, 4, 4096)
    assert torch.equal(fmt.round(Hybrid().round(x)), Hybrid().round(x))
    below, above = fmt.neighbours(x)
    assert ((Hybrid().round(x) == below) | (Hybrid().round(x) == above)).all()
    assert Hybrid().round(torch.tensor(math.nan)).isnan()


def test_divergence_over_the_likeliest():
    reference_logits = torch.tensor([[0.0, 1.0, 2.0, -50.0]])
    assert top_divergence(reference_logits, reference_logits + 3.0) == pytest.approx(0.0, abs=1e-12)
    assert top_divergence(reference_logits, torch.tensor([[0.0, 1.0, 2.0, 50.0]]), top=3) == pytest.approx(
        0.0, abs=1e-12
    )
    p, q = torch.softmax(torch.tensor([2.0, 1.0]), 0), torch.softmax(torch.tensor([0.0, 0.0]), 0)
    expected = float((p * (p / q).log()).sum())
    assert top_divergence(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 0.0]])) == pytest.approx(expected)


def test_inputs_are_caught_once_and_the_model_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 5, 3)
    found = inputs_of(model, lambda: model(x), rows=7)
    assert torch.equal(found["0"], x.reshape(10, 3)[:7]) and found["2"].shape == (7, 4)
    assert not model[0]._forward_pre_hooks


def test_the_table_of_the_specification_has_its_published_ends():
    assert table(nc.format("e4m3fn"))[-1] == 448 and len(table(nc.format("e4m3fn"))) == 127
    assert table(nc.format("e5m2"))[1] == 2.0**-16 and table(nc.format("e5m2"))[-1] == 57344
    assert reference(nc.format("e4m3fn"), torch.tensor([1.0625, 1.1875, -0.0])).tolist() == [0x38, 0x3A, 0x80]


def test_the_published_law_of_integers():
    from narrowcast.analysis.crest import E8M0

    assert published(8, 2.0, E8M0) == pytest.approx(4.78 + 6.02 * 8 - 20 * math.log10(3.0), abs=1e-3)


def test_a_recipe_of_ones_own_trains_in_memory_only(tmp_path):
    with pytest.raises(InputError, match="is in no table"):
        train(TrainConfig(), tmp_path, chosen=recipe("bf16"))


@real
def test_outlier_channels_change_nothing_but_the_inputs():
    stories = load_stories(Setting(quick=True, data=data_folder()))
    loud = copy.deepcopy(stories.model)
    inject_outliers(loud, factor=64.0)
    assert stories.bits_per_byte(loud) == pytest.approx(stories.bits_per_byte(stories.model), rel=1e-5)
    batch = stories.batches[0][:, :-1]
    quiet, shouting = (
        inputs_of(m, lambda m=m: m(input_ids=batch))["model.layers.0.self_attn.q_proj"] for m in (stories.model, loud)
    )
    assert shouting.abs().max() > 20 * quiet.abs().max()
    with pytest.raises(InputError, match=r"model\.layers"):
        inject_outliers(nn.Linear(2, 2))


@real
def test_stories_are_those_of_the_published_figure():
    stories = load_stories(Setting(data=data_folder()))
    assert stories.tokens == 12684  # GOLDEN.json of the weights
    assert stories.bits_per_byte(stories.model) == pytest.approx(PUBLISHED, abs=5e-5)
