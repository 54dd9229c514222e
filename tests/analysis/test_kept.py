"""What crosses from the forward to the backward pass: graphs small enough to know by hand."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from narrowcast.analysis.kept import Row, kept


def test_an_activation_is_kept_and_parameters_and_inputs_are_not():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    assert kept(model, torch.randn(32, 8)) == [Row("aten.relu.default", "float32", (32, 16), 1, 32 * 16 * 4)]


def test_views_count_once_and_what_follows_elementwise_is_made_again():
    def run(x: torch.Tensor) -> torch.Tensor:
        y = x @ x  # kept, for the sine's gradient; sine and exponential are not
        return (y.sin().exp() * y.view(-1).exp().view(4, 4)).sum()

    rows = kept(run, torch.randn(4, 4, requires_grad=True))
    assert [(row.made_by, row.shape, row.bytes) for row in rows] == [("aten.mm.default", (4, 4), 64)]


def test_a_large_model_takes_no_memory():
    with FakeTensorMode():
        model, x = nn.Linear(1 << 20, 1 << 16), torch.empty(1 << 16, 1 << 20, requires_grad=True)
        rows = kept(lambda x: model(x).tanh(), x)
    assert [(row.made_by, row.count, row.bytes) for row in rows] == [("aten.tanh.default", 1, 4 << 32)]
