"""Gated units, norms and parametrisations that recipes put into a model."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.models import default_config, from_config
from narrowcast.nn.gated import Gated, GatedUnit, Saved, _SavedProduct
from narrowcast.nn.norm import Norms
from narrowcast.nn.remade import Remade
from narrowcast.nn.unit import UnitVariance
from narrowcast.passes import smooth_scale
from narrowcast.quantize import cast

GROUPS = cast("e4m3fn/1x16+pad/bfloat16")


class Mlp(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
        self.down_proj, self.act_fn = nn.Linear(48, 32, bias=bias), nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def changed(change, model: nn.Module) -> nn.Module:
    holder = nn.Sequential(copy.deepcopy(model))
    rows = change.apply(holder, "auto")
    assert [r.became for r in rows] == ["changed"]
    return holder[0]


def test_smoothing_is_the_next_power_of_two():
    up = torch.tensor([[0.0, 0.0], [1.0, -4.0], [4.1, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [1e-40, 0.0]])
    assert smooth_scale(up).flatten().tolist() == [1.0, 4.0, 8.0, 1.0, 1.0, 2.0**-126]


def test_smooth_swiglu_changes_no_bit_of_a_wide_model():
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(4, 9, 32)
    smooth = changed(Gated(smooth=True), model)
    assert isinstance(smooth, GatedUnit)
    assert [n for n, _ in smooth.named_parameters()] == [n for n, _ in model.named_parameters()]
    for a, b in zip(run(smooth, x), run(model, x), strict=True):
        assert torch.equal(a, b)


def test_smooth_swiglu_tames_the_spike_that_breaks_a_history():
    """Aligned branches, and a token 16 times larger after ordinary ones: the product grows by 256, smoothed by 16."""
    torch.manual_seed(0)
    error = {}
    for name in ("fp8-delayed", "fp8-smooth-swiglu"):
        torch.manual_seed(0)
        model = nn.Sequential(Mlp())
        model[0].gate_proj.weight.data.copy_(model[0].up_proj.weight.data.mul_(8))
        direction = model[0].up_proj.weight[0].detach() / model[0].up_proj.weight[0].detach().norm()
        wide = copy.deepcopy(model)
        nc.convert(model, name, only=("*down_proj",))
        ordinary = 0.1 * torch.randn(64, 32) + direction
        for _ in range(2):
            model(ordinary).sum().backward()
        spike = 16 * direction[None]
        error[name] = float((model(spike) - wide(spike)).detach().norm() / wide(spike).detach().norm())
    assert error["fp8-delayed"] == pytest.approx(1 - 1 / 256, abs=0.01)  # what is left of a saturated product
    assert error["fp8-smooth-swiglu"] == pytest.approx(1 - 1 / 16, abs=0.05)


def test_saved_inputs_give_the_gradients_of_what_they_decode_to():
    torch.manual_seed(0)
    gate, up, g = torch.randn(5, 40), torch.randn(5, 40), torch.randn(5, 40)

    class Decoded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return GROUPS.apply(x.detach()) + x - x.detach()  # straight through

    a, b = gate.clone().requires_grad_(), up.clone().requires_grad_()
    model = changed(Gated(saved=GROUPS), Mlp())
    model.gate_proj = model.up_proj = model.down_proj = nn.Identity()
    y = _SavedProduct.apply(a, b, None, Saved(GROUPS, "auto", torch.float32))
    y.backward(g)
    c, d = gate.clone().requires_grad_(), up.clone().requires_grad_()
    want = nn.functional.silu(Decoded()(c)) * Decoded()(d)
    want.backward(g)
    for found, expected in ((y, want), (a.grad, c.grad), (b.grad, d.grad)):
        torch.testing.assert_close(found, expected, rtol=5e-5, atol=1e-6)  # `passes.sigmoid` in the gradients


def test_saved_norm_gives_the_gradients_of_what_its_input_decodes_to():
    torch.manual_seed(0)
    plain = nn.RMSNorm(32)
    with torch.no_grad():
        plain.weight.normal_()
    x = GROUPS.apply(torch.randn(6, 32))  # decodes to itself
    saved = changed(Norms(saved=GROUPS), plain)
    for a, b in zip(run(saved, x), run(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["fp8-coat", "fp8-smooth-swiglu", "fp8-static"])
def test_recipes_change_a_llama_and_keep_its_parameters(recipe):
    model = from_config(default_config(64, 32), 0)
    names = {n: p.shape for n, p in model.named_parameters()}
    tokens = torch.randint(64, (2, 16))
    before = model(input_ids=tokens).logits
    report = nc.convert(model, recipe)
    assert {n: p.shape for n, p in model.named_parameters()} == names
    places = [r.name for r in report.rows if r.became == "changed"]
    expected = {"fp8-coat": 2 + 5 + 4, "fp8-smooth-swiglu": 2, "fp8-static": 0}  # gated units, norms, blocks' halves
    assert len(places) == expected[recipe]
    after = model(input_ids=tokens).logits
    after.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert float((after - before).detach().norm() / before.detach().norm()) < 0.15


def test_a_model_without_the_module_says_so_and_a_bias_is_refused():
    rows = nc.convert(nn.Sequential(nn.Linear(16, 16)), "fp8-smooth-swiglu").rows
    assert rows[-1].became == "absent"
    assert "no gated unit" in rows[-1].why
    with pytest.raises(InputError, match="module '0': Smooth-SwiGLU would multiply the bias of down_proj"):
        nc.convert(nn.Sequential(Mlp(bias=True)), "fp8-smooth-swiglu")


@pytest.mark.parametrize(("width", "base"), [(256, 256), (192, None)])
def test_unit_variance_keeps_the_function_and_an_adam_step(width, base):
    """abc-symmetry: at the base width, one AdamW step in the rewritten weights is one in the old ones."""
    torch.manual_seed(0)
    form = UnitVariance(base)
    base = nn.Sequential(nn.Linear(width, 8, bias=False))
    spec = nc.LinearSpec(*(nc.Gemm(nc.WIDE, nc.WIDE),) * 3)
    recipe = nc.Recipe("wide", "", "", spec, parametrisation=form)
    moved = copy.deepcopy(base)
    recipe.convert(moved)
    x = torch.randn(32, width)
    torch.testing.assert_close(moved(x), base(x), rtol=1e-5, atol=1e-6)
    for model, chosen in ((base, nc.Recipe("none", "", "")), (moved, recipe)):
        groups = [{**g, "lr": 1e-3 * g["factor"]} for g in chosen.parameter_groups(model, 0.1) if g["params"]]
        step = torch.optim.AdamW(groups, eps=1e-15)
        model(x).square().sum().backward()
        step.step()
    torch.testing.assert_close(moved(x), base(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_remade_is_refused():
    delayed = nc.recipe("fp8-delayed").linear
    with pytest.raises(InputError, match="remade 'w': a scale comes from a history"):
        replace(delayed, remade=("w",))
    with pytest.raises(InputError, match="remade 'g': expected 'w', 'x' or 'x-alive'"):
        replace(nc.recipe("fp8-coat").linear, remade=("g",))
    assert Remade().apply(nn.Sequential(Mlp()), "auto")[0].became == "absent"  # nothing is narrow yet
