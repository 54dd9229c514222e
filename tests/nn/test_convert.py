"""The module swap and its table."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.nn import Linear
from narrowcast.ops import Reuse


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(4, 32, 64))


class Odd(nn.Linear):
    """A subclass with behaviour of its own."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 32)
        self.block = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))
        self.odd = Odd(32, 32)
        self.conv = nn.Conv1d(32, 32, 3)
        self.experts = Experts()
        self.lm_head = nn.Linear(32, 10)


def test_the_table_has_every_matmul_site_and_a_reason_for_each_wide_one():
    model = Net()
    weights = dict(model.named_parameters())
    report = nc.convert(model, "fp8-rowwise")
    rows = {row.name: row for row in report.rows}
    assert {n for n, r in rows.items() if r.became == "narrow"} == {"block.0", "block.2"}
    assert set(rows) == {"embed_tokens", "block.0", "block.2", "odd", "conv", "experts.gate_up", "lm_head"}
    assert all(row.why for row in report.rows)
    assert rows["lm_head"].why == "kept wide by rule '*lm_head'"
    assert rows["experts.gate_up"].kind == "experts"
    assert rows["experts.gate_up"].shape == (4, 32, 64)
    assert rows["block.0"].backend == "emulate"
    assert isinstance(model.block[0], Linear)
    assert model.block[0].site == "block.0"
    assert all(p is weights[n] for n, p in model.named_parameters()), "parameters are kept, not copied"
    assert all(row.name in report.table() for row in report.rows)


def test_only_picks_layers():
    model = Net()
    report = nc.convert(model, "bf16", only=("block.0",))
    assert [row.name for row in report.narrow] == ["block.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ("blok.*",)}, "pattern 'blok.*' matches no module"),
        ({"only": ("lm_head",)}, "no linear layer of the model is to be converted"),
        ({"backend": "native"}, "backend 'native' cannot run here: device cpu has no narrow tensor cores"),
        ({"backend": "nativ"}, "unknown backend 'nativ'; nearest: native"),
    ],
)
def test_refusals_leave_the_model_alone(arguments, message):
    model = Net()
    with pytest.raises(InputError) as error:
        nc.convert(model, "fp8-rowwise", **arguments)
    assert message in str(error.value)
    assert not any(isinstance(m, Linear) for m in model.modules())


def test_a_layer_in_two_places_stays_shared_and_has_two_rows():
    model = nn.ModuleDict({"a": nn.Linear(32, 32), "rest": nn.Sequential(nn.Linear(32, 32))})
    model["b"] = model["a"]
    report = nc.convert(model, "mxfp8")
    assert [row.name for row in report.narrow] == ["a", "rest.0", "b"]
    assert isinstance(model["a"], Linear)
    assert model["a"] is model["b"] is not model["rest"][0]


def test_a_model_that_is_a_layer_is_refused():
    with pytest.raises(InputError, match="itself a linear layer"):
        nc.convert(nn.Linear(32, 32), "mxfp8")


def test_a_converted_model_is_refused():
    model = Net()
    nc.convert(model, "bf16")
    with pytest.raises(InputError, match=r"'block\.0' is converted already"):
        nc.convert(model, "fp8-rowwise")


def test_fp32_converts_nothing_and_says_so():
    report = nc.convert(Net(), "fp32")
    assert not report.narrow
    assert {r.why for r in report.rows if r.kind == "Linear"} == {"the recipe leaves linear layers alone"}


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="unknown recipe 'fp8-rowise'; nearest: fp8-rowwise"):
        nc.convert(Net(), "fp8-rowise")


def test_a_recipe_with_an_accumulator_of_its_own():
    made = nc.recipe("fp8-rowwise@hopper-fp8+fp8-adam")
    assert (made.name, made.optimizer) == ("fp8-rowwise@hopper-fp8+fp8-adam", "fp8-adam")
    gemms = (made.linear.fwd, made.linear.dgrad, made.linear.wgrad)
    assert {str(gemm.accumulator) for gemm in gemms} == {"hopper-fp8"}
    assert str(nc.recipe("fp8-delayed@hopper-fp8").linear.operand("wgrad.x")) == "reuse"
    linear = nc.recipe("fp8-tensorwise").linear
    again = replace(linear, wgrad=replace(linear.wgrad, a=Reuse(nc.cast("e4m3fn/tensor/fp32"))))
    with pytest.raises(InputError, match="decoded and cast again, which leaves accumulator 'hopper-fp8' no codes"):
        replace(nc.recipe("fp8-tensorwise"), linear=again).with_accumulator("hopper-fp8")
    with pytest.raises(InputError, match=r"recipe 'fp8-rowwise\+joind': unknown 'joind' after '\+'; nearest: joined"):
        nc.recipe("fp8-rowwise+joind")
    for twice in ("fp8-rowwise+joined+joined", "fp8-rowwise+fp8-adam+bf16-adam-sr"):
        with pytest.raises(InputError, match=r"expected at most one optimizer and one '\+joined'"):
            nc.recipe(twice)
    with pytest.raises(InputError, match="'hoper' is none of fp32"):
        nc.recipe("fp8-rowwise@hoper")
    with pytest.raises(InputError, match="fp32 has no narrow gemms whose sums"):
        nc.recipe("fp32@hopper-fp8")
