"""The yardstick of a loss: the same model with its weights rounded to bfloat16, which nobody calls worse."""

import copy

import torch
from torch import nn


@torch.no_grad()
def in_bfloat16(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose parameters hold bfloat16's values, in their own dtype."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.is_floating_point():
            parameter.copy_(parameter.to(torch.bfloat16))
    return rounded
