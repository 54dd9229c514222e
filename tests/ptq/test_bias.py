"""Bias correction: afterwards the mean of every output channel is that of the wide layer."""

import copy

import torch
from torch import nn

from narrowcast.ptq.bias import correct_biases
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.quantize import cast


def test_means_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    x = torch.rand(64, 3, 6, 6)
    narrow = copy.deepcopy(model)
    quantize_model(narrow, PtqRecipe("int3", "", "", Scheme(cast("int3/row/fp32"))), [])
    worse = (narrow[0](x).mean((0, 2, 3)) - model[0](x).mean((0, 2, 3))).abs().max()
    original = {name: p.detach() for name, p in model.named_parameters()}
    assert correct_biases(narrow, original, [lambda: narrow(x)], ()) == 2
    assert (narrow[0](x).mean((0, 2, 3)) - model[0](x).mean((0, 2, 3))).abs().max() < 1e-5 < worse
    wide = nn.functional.linear(narrow[:3](x), model[3].weight, model[3].bias)
    assert isinstance(narrow[0].bias, nn.Parameter) and wide.shape == (64, 5)
