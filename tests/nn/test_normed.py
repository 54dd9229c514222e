"""Norm and gated unit in one: against torch's own operations in float32, and what it leaves of a model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.tiny import CONFIG
from torch import nn
from torch.utils.checkpoint import checkpoint

import narrowcast as nc
from narrowcast.nn.context import Context
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import Plans
from narrowcast.nn.normed import NormedGate, NormedGates, Unit, _Normed
from narrowcast.nn.qkv import NormedQKV
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import WIDE, Gemm
from narrowcast.recipes import recipe

LAYERS = tuple(Context(site, 0, 0, None, None) for site in ("gate", "down"))
SPEC = LinearSpec(Gemm(WIDE, WIDE), Gemm(WIDE, WIDE), Gemm(WIDE, WIDE))


def llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**CONFIG, "num_hidden_layers": layers, "attention_dropout": 0.0}))


def tensors(rows: int = 20, width: int = 24, hidden: int = 40) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (width,), (hidden, width), (hidden, width), (width, hidden))
    return [
        (torch.randn(shape, generator=g) * scale).requires_grad_()
        for shape, scale in zip(shapes, (1, 1, 0.1, 0.1, 0.1), strict=True)
    ]


def plainly(x: torch.Tensor, norm: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    normed = F.rms_norm(x, (x.shape[-1],), norm, 1e-6)
    gate, up = (F.linear(normed, weight) for weight in weights[:2])
    return F.linear(F.silu(gate) * up, weights[2])


@pytest.mark.parametrize("smooth", [False, True])
def test_without_narrowing_it_is_torch_s_own(smooth):
    mine, theirs = tensors(), [t.detach().double().requires_grad_() for t in tensors()]
    y = _Normed.apply(*mine, Unit(SPEC, 1e-6, Plans(), smooth), torch.float32, LAYERS)
    expected = plainly(*theirs)
    y.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip([y, *(t.grad for t in mine)], [expected, *(t.grad for t in theirs)], strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("name", ["fp8-rowwise", "fp8-rowwise@hopper-fp8", "fp8-block", "fp8-tensorwise", "fp8-static"])
def test_recipes_stay_close_and_checkpointing_changes_nothing(name):
    spec, arguments = recipe(name).linear, tensors(32, 128, 128)
    results = []
    for run in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        for t in arguments:
            t.grad = None
        y = run(_Normed.apply, *arguments, Unit(spec, 1e-6, Plans()), torch.float32, LAYERS)
        y.square().mean().backward()
        results.append([y.detach(), *(t.grad for t in arguments)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    expected = plainly(*arguments)
    assert (results[0][0] - expected).norm() < 0.1 * expected.norm()


def test_a_model_keeps_its_parameters_names_and_trains():
    model = llama(2)
    names = dict(model.named_parameters())
    nc.convert(model, "fp8-rowwise", backend="emulate")
    rows = NormedGates().apply(model, "emulate")
    assert [row.became for row in rows] == ["changed", "changed"]
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in names.items()}
    assert sum(isinstance(m, NormedGate) for m in model.modules()) == 2
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert NormedGates().apply(nn.Sequential(nn.ReLU()), "auto")[0].became == "absent"


def test_without_scales_joining_changes_no_product():
    """Factors of unit variance included; what is left is the order of float32 operations in norm and gate."""
    torch.manual_seed(0)
    apart = llama(2)
    joined = copy.deepcopy(apart)
    ids = torch.arange(24).view(2, 12)
    for model in (apart, joined):
        nc.convert(model, "fp8-static", backend="emulate")
        assert model.model.layers[0].mlp.down_proj.alpha != 1.0
    assert NormedGates().apply(joined, "emulate")
    losses = [model(input_ids=ids, labels=ids).loss for model in (apart, joined)]
    assert (losses[0] - losses[1]).abs() < 1e-4 * losses[0].abs()
    for loss in losses:
        (4096 * loss).backward()
    for (name, one), other in zip(apart.named_parameters(), joined.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.1 * one.grad.norm(), name  # a code of e5m2 is a quarter


@pytest.mark.parametrize("recipe", ["fp8-delayed", "fp8-smooth-swiglu"])
def test_histories_advance_as_apart_and_recomputation_sees_the_same(recipe):
    """Of x and of down they are those of single layers; gate's history and random bits serve gate and up."""
    torch.manual_seed(0)
    apart = llama(1)
    joined, again = copy.deepcopy(apart), copy.deepcopy(apart)
    for model, name in ((apart, recipe), (joined, f"{recipe}+joined"), (again, f"{recipe}+joined")):
        nc.convert(model, name, backend="emulate")
    unit = again.model.layers[0].mlp
    inner = unit.forward
    unit.forward = lambda x: checkpoint(inner, x, use_reentrant=False)
    ids = torch.arange(24).view(2, 12)
    for model in (apart, joined, again):
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
    of = [model.model.layers[0].mlp for model in (apart, joined, again)]
    for layer in ("gate_proj", "down_proj"):
        one, two, three = (getattr(unit, layer).history for unit in of)
        assert torch.equal(two, three)
        assert (one[:3, 1:4] > 0).all()  # x, w, g; the others are reused
        assert (one - two).abs().max() < 0.05 * one.max(), layer
        one, two, three = (getattr(unit, layer).step for unit in of)
        assert one == two == three == (3 if "smooth" in recipe else None)
    assert not of[1].up_proj.history.any()
    heads = [model.model.layers[0].self_attn for model in (apart, joined)]
    one, two = (unit.q_proj.history[0] for unit in heads)
    assert (one - two).abs().max() < 1e-5  # x
    assert (heads[1].q_proj.history[2, 1:4] > 0).all()
    assert not heads[1].k_proj.history.any()


@pytest.mark.parametrize("name", ["fp32+joined", "mxfp4-rht-sr+joined", "fp8-coat+joined"])
def test_recipes_that_cannot_be_joined_say_why(name):
    with pytest.raises(nc.InputError, match=r"recipe \S+ cannot have norm and gated unit joined: "):
        nc.recipe(name)


def test_a_joined_recipe_is_spelled_as_it_is_made():
    found = nc.recipe("fp8-rowwise@hopper-fp8+joined+fp8-adam")
    assert (found.name, found.optimizer) == ("fp8-rowwise@hopper-fp8+joined+fp8-adam", "fp8-adam")
    assert found.changes == (NormedGates(), NormedQKV())
    assert nc.recipe("fp8-smooth-swiglu+joined").changes == (NormedGates(smooth=True), NormedQKV())


def test_what_cannot_be_joined_is_refused():
    model = llama(1)
    nc.convert(model, "mxfp4-rht-sr", backend="emulate")
    with pytest.raises(nc.InputError, match=r"block 'model.layers.0': .*rotates its operands"):
        NormedGates().apply(model, "auto")
    assert isinstance(model.model.layers[0].mlp.gate_proj, Linear)
    with pytest.raises(nc.InputError, match=r"blocks of 128 do not divide its 64 columns"):
        nc.convert(llama(1), "fp8-block+joined", backend="emulate")
