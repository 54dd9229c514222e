"""Compiled under autocast, an emulated layer's backward pass is the eager one: its products are not autocast's."""

import copy

import pytest
import torch
from torch import nn

import narrowcast as nc
from narrowcast.nn.context import Context
from narrowcast.nn.native import Plans
from narrowcast.nn.normed import Unit, _Normed


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("recipe", ["bf16", "fp8-rowwise"])
def test_gradients_are_those_of_eager(recipe: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 64, bias=False), nn.SiLU(), nn.Linear(64, 32, bias=False))
    nc.convert(plain, recipe, backend="emulate")
    other = copy.deepcopy(plain)
    x = torch.randn(24, 32)
    torch.compiler.reset()
    for run in (plain, torch.compile(other, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        y.float().square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_norm_and_gate_in_one_too() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(s) / 8 for s in ((32, 64), (64,), (128, 64), (128, 64), (64, 128))]
    unit, found = Unit(nc.recipe("fp8-rowwise").linear, 1e-6, Plans()), []
    layers = tuple(Context(site, 0, 0, None, None) for site in ("gate", "down"))
    torch.compiler.reset()
    for run in (_Normed.apply, torch.compile(lambda *a: _Normed.apply(*a), backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with torch.autocast("cpu", torch.bfloat16):
            y = run(*leaves, unit, torch.float32, layers)
        y.square().sum().backward()
        found.append([t.grad for t in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
