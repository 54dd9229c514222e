"""The first-order error model: its moments against sampling, its layers against rounding; the sweep's parts."""

import math

import pytest
import torch

from narrowcast.analysis.propagation import conditions, measured, predicted, relative_error
from narrowcast.analysis.truncation import Run, cliff, sweep
from narrowcast.errors import InputError
from narrowcast.formats import Stream, format, rounding
from narrowcast.models.stacked import StackedMlp
from narrowcast.workloads.images import Images


@pytest.mark.parametrize("mode", ["toward-zero", "nearest-even", "stochastic"])
def test_moments_are_those_of_rounding_log_uniform_numbers(mode):
    x = torch.exp2(torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4)
    draws = Stream(1).bits(x.shape) if mode == "stochastic" else None
    error = format("e8m6").round(x, rounding(mode), draws).double() / x - 1
    model = relative_error(6, mode)
    assert float(error.mean()) == pytest.approx(model.mean, rel=0.01, abs=2e-5)  # the model is of first order
    assert float(error.std()) == pytest.approx(model.deviation, rel=0.01)
    if mode == "toward-zero":
        assert model.mean == pytest.approx(-0.7213 * 2.0**-7, rel=1e-4)  # sheet 84


def test_a_layer_without_cancellation_has_condition_one_over_root_n_and_cancellation_raises_it():
    ones = torch.ones(16, 3)
    assert conditions([ones], [torch.zeros(1, 3)], torch.ones(5, 16)) == pytest.approx([0.25])
    signs = torch.ones(16, 3)
    signs[:7] = -1
    assert conditions([signs], [torch.zeros(1, 3)], torch.ones(5, 16)) == pytest.approx([2.0])


@pytest.mark.parametrize(("mode", "bits"), [("toward-zero", 4), ("nearest-even", 4), ("stochastic", 5)])
def test_the_model_predicts_a_rounded_network(mode, bits):
    network = StackedMlp((1, 1), (64, 48, 48, 10), [0])
    weights, biases = [w[0, 0].detach() for w in network.weights], [b[0, 0].detach() for b in network.biases]
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    before = network(x)[0, 0].detach()
    with torch.no_grad():
        for i, w in enumerate(network.weights):
            draws = Stream(2, i).bits(w.shape) if mode == "stochastic" else None
            w.copy_(format(f"e8m{bits}").round(w, rounding(mode), draws))
    found = measured(before, network(x)[0, 0].detach())
    expected = predicted(conditions(weights, biases, x), relative_error(bits, mode))
    assert 0.5 < found / expected < 2
    assert math.isclose(measured(before, before * 1.5), 0.5, rel_tol=1e-5)


def test_an_unknown_rounding_has_no_model():
    with pytest.raises(InputError, match="no error model for rounding 'odd'"):
        relative_error(4, "odd")


def test_networks_of_a_stack_are_independent_and_those_of_one_seed_start_alike():
    network = StackedMlp((2, 3), (5, 4, 2), [0, 1, 2])
    assert torch.equal(network.weights[0][0], network.weights[0][1])
    assert not torch.equal(network.weights[0][0, 0], network.weights[0][0, 1])
    x = torch.randn(7, 5)
    y = network(x)
    assert y.shape == (2, 3, 7, 2)
    alone = torch.relu(x @ network.weights[0][1, 2] + network.biases[0][1, 2]) @ network.weights[1][1, 2]
    assert torch.allclose(y[1, 2], alone + network.biases[1][1, 2], atol=1e-6)
    y[1, 2].sum().backward()
    assert network.weights[0].grad[0].abs().max() == 0


def test_a_sweep_trains_each_run_and_keeps_its_parameters_in_their_format():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=g)
    pixels = torch.randn(400, 1, 4, 4, generator=g) * 0.3
    pixels.view(400, 16)[torch.arange(400), labels] += 2.0
    images = Images(pixels, labels)
    runs = [Run(), Run(8, 4, "nearest-even"), Run(4, 3, "stochastic"), Run(8, 1, "toward-zero"), Run(rate=0.0)]
    found = sweep(runs, images.head(320), images, (12,), seeds=[0, 1], batch=32, epochs=8)
    assert found.accuracy.shape == found.size.shape == (5, 2)
    assert found.of(Run()) > 80 > 30 > found.of(Run(rate=0.0))
    for number, run in enumerate(runs[1:4], 1):
        for parameter in found.network.parameters():
            values = parameter[number].detach()
            assert torch.equal(run.format.round(values), values)
    assert found.shrunk(Run()) == 1.0 and found.shrunk(Run(8, 1, "toward-zero")) < 0.9
    again = sweep([Run(4, 3, "stochastic")], images.head(320), images, (12,), seeds=[0, 1], batch=32, epochs=1)
    once = sweep([Run(4, 3, "stochastic")], images.head(320), images, (12,), seeds=[0, 1], batch=32, steps=10)
    assert torch.equal(again.size, once.size)


def test_the_cliff_is_where_accuracy_crosses():
    assert cliff((1, 2, 3, 4), (10.0, 50.0, 90.0, 100.0), 100.0, 0.7) == 2.5
    assert cliff((1, 2, 3), (99.0, 99.0, 100.0), 100.0) == 1.0 and cliff((1, 2, 3), (1.0, 2.0, 3.0), 100.0) == 3.0
