"""Parameters truncated after each step: the sheet's goldens, every kind of target, and resuming."""

import numpy as np
import pytest
import torch
from torch import nn

from narrowcast.errors import InputError
from narrowcast.formats import Stream, format, rounding
from narrowcast.optim import truncate_, truncate_after_step


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_goldens_of_truncation():
    """Sheet 84: the low mantissa bits are cleared."""
    p = parameter(1.99, -1.99, 0.3, 0.25)
    assert truncate_([p], "e8m2") == 3
    assert p.tolist() == [1.75, -1.75, 0.25, 0.25]
    x = torch.randn(1000)
    q = nn.Parameter(x.clone())
    truncate_([q], "e8m7")
    cleared = (x.numpy().view(np.int32) & ~0xFFFF).view(np.float32)
    assert np.array_equal(q.detach().numpy(), cleared)


@pytest.mark.parametrize(("update", "after"), [(0.001, 1.0), (-0.001, 0.99609375)])
def test_a_tiny_update_is_lost_away_from_zero_and_costs_a_step_towards_it(update, after):
    p = parameter(1.0)
    optimizer = torch.optim.SGD([p], lr=1.0)
    truncate_after_step(optimizer, "e8m7")
    p.grad = torch.tensor([-update])
    optimizer.step()
    assert p.item() == after


def test_any_target_and_the_handle():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle = truncate_after_step(optimizer, "e5m3")
    assert all(torch.equal(format("e5m3").round(p.detach()), p) for p in model.parameters())
    assert truncate_(model, "e5m3") == truncate_(optimizer, "e5m3") == truncate_(list(model.parameters()), "e5m3") == 0
    handle.remove()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert truncate_(model, "e5m3") > 0


def test_stochastic_modes_draw_per_parameter_and_step_and_resume():
    def run(steps: list[int], start: int, values: torch.Tensor) -> torch.Tensor:
        p = nn.Parameter(values.clone())
        optimizer = torch.optim.SGD([p], lr=0.1)
        truncate_after_step(optimizer, "e4m3fn", "stochastic", seed=7, step=start)
        for s in steps:
            p.grad = torch.full_like(p, 0.01 * (s + 1))
            optimizer.step()
        return p.detach()

    start = torch.linspace(-2, 2, 50)
    whole, half = run([0, 1, 2], 0, start), run([0], 0, start)
    assert torch.equal(run([1, 2], 1, half), whole)
    first = parameter(*start.tolist())
    truncate_([first], "e4m3fn", "stochastic", seed=7, step=3)
    draws = Stream(7, 0, 3).bits((50,))
    assert torch.equal(first.detach(), format("e4m3fn").round(start, rounding("stochastic"), draws))


def test_nothing_to_truncate_is_refused():
    with pytest.raises(InputError, match="no floating-point parameters"):
        truncate_(nn.ReLU(), "e8m7")
