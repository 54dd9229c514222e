"""Fake quantization: the forward pass is the cast's, the gradient the identity's, and what is trained is deployed."""

import pytest
import torch
from torch import nn

from narrowcast.errors import InputError
from narrowcast.qat import Plan, finish, prepare, straight_through
from narrowcast.quantize import cast

WEIGHT, INPUT = cast("e2m1fn/row/fp32"), cast("int8/tensor/fp32")


def test_values_are_the_casts_and_gradients_pass():
    x = torch.randn(4, 8, requires_grad=True)
    y = straight_through(x, WEIGHT.apply)
    assert torch.allclose(y, WEIGHT.apply(x.detach()), rtol=0, atol=1e-6)
    (y * torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0).expand(4, 8))


def test_a_layer_multiplies_what_its_casts_make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    conv, linear = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    prepare(model, {"0": Plan(WEIGHT, INPUT), "*": Plan(WEIGHT)})
    x = torch.randn(2, 1, 4, 4)
    seen = nn.functional.conv2d(
        INPUT.apply(x.flatten(1)).view(x.shape), WEIGHT.apply(conv.flatten(1)).view(conv.shape), model[0].bias
    )
    expected = nn.functional.linear(seen.flatten(1), WEIGHT.apply(linear), model[2].bias)
    assert torch.allclose(model(x), expected, atol=1e-5)
    model(x).square().sum().backward()
    assert model[0].parametrizations.weight.original.grad.abs().sum() > 0
    before = model(x)
    finish(model)
    assert torch.equal(model(x), before)
    assert torch.allclose(model[2].weight, WEIGHT.apply(linear), atol=1e-6)


def test_the_first_pattern_decides_and_one_that_decides_nothing_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    decided = prepare(model, {"1": Plan(), "*": Plan(WEIGHT)})
    assert decided == {"0": Plan(WEIGHT), "1": Plan()}
    with pytest.raises(InputError, match="'head'"):
        prepare(nn.Sequential(nn.Linear(4, 4)), {"head": Plan(WEIGHT), "*": Plan()})
