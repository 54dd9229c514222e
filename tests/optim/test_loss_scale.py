"""The loss scaler against torch.amp.GradScaler, flag by flag."""

import pytest
import torch
from torch import nn

from narrowcast.errors import CheckFailed
from narrowcast.optim import LossScaler


def test_the_state_sequence_is_grad_scalers():
    flags = [False, False, True, True, True, False, *[True] * 9]
    ours = LossScaler(initial=65536.0, growth=2.0, backoff=0.5, interval=4)
    theirs = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=4)
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.0)
    for finite in flags:
        p.grad = torch.full((2,), 1.0 if finite else float("inf"))
        theirs.scale(torch.zeros(()))  # GradScaler makes its state at the first use
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert (ours.scale, ours.good) == (theirs.get_scale(), theirs._get_growth_tracker())
    assert ours.skipped == 3


def test_unscaling_divides_and_finds_what_is_not_finite():
    scaler = LossScaler(initial=8.0)
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    a.grad = torch.tensor([8.0, 2.0**-126])
    assert scaler.unscale([a, b])
    assert a.grad.tolist() == [1.0, 2.0**-129]
    b.grad = torch.tensor([1.0, float("nan")])
    assert not scaler.unscale([a, b])


def test_overflow_at_scale_one_ends_the_run():
    scaler = LossScaler(initial=2.0)
    scaler.update(False)
    with pytest.raises(CheckFailed, match="even at loss scale 1"):
        scaler.update(False)
