"""Narrow optimizers: the reference against torch, and what is refused."""

import numpy as np
import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.optim import NarrowOptimizer, method, optimizer
from narrowcast.optim.rules import square_root


def test_the_reference_is_torch_adamw_but_for_the_order_of_its_roundings():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-2, 2, 999)) for _ in "ab")
    a = NarrowOptimizer([ours], "fp32-adam", lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    b = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(20):
        ours.grad = torch.randn(999)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)


def test_square_roots_are_correctly_rounded():
    x = torch.rand(100000) * 10.0 ** torch.randint(-40, 30, (100000,)).float()
    assert np.array_equal(square_root(x).numpy(), np.sqrt(x.numpy()))  # IEEE 754 asks as much of NumPy's


def test_stochastic_rounding_keeps_updates_that_nearest_loses():
    """A step of a hundredth of bfloat16's spacing: nearest never moves, stochastic moves as much on average."""
    moved = {}
    for rounding in ("nearest-even", "stochastic"):
        states = f"weight=bfloat16/tensor/one/{rounding} m=float32 v=float32"
        p = torch.nn.Parameter(torch.ones(20000).bfloat16())
        opt = NarrowOptimizer([p], states, lr=2**-7 / 100, weight_decay=0.0, seed=1)
        for _ in range(10):
            p.grad = -torch.ones_like(p)
            opt.step()
        moved[rounding] = float((p.detach().float() - 1).mean())
    expected, sigma = 10 * 2**-7 / 100, 2**-7 * (0.1 * 0.9 / 20000) ** 0.5
    assert moved["nearest-even"] == 0.0
    assert abs(moved["stochastic"] - expected) < 4 * sigma


def test_kahan_keeps_them_too():
    p = torch.nn.Parameter(torch.ones(10).bfloat16())
    opt = NarrowOptimizer([p], "weight=bfloat16x2 m=float32 v=float32", lr=2**-7 / 100, weight_decay=0.0)
    for _ in range(200):
        p.grad = -torch.ones_like(p)
        opt.step()
    assert torch.equal(p.detach().float(), torch.full((10,), 1 + 2 * 2**-7))


def test_groups_may_keep_their_states_in_their_own_way():
    a, b = (torch.nn.Parameter(torch.ones(4, 4)) for _ in "ab")
    opt = NarrowOptimizer([{"params": [a]}, {"params": [b], "states": "fp32-adam", "lr": 0.0}], "fp8-adam")
    a.grad, b.grad = torch.ones(4, 4), torch.ones(4, 4)
    opt.step()
    assert opt.state[a]["m.codes"].dtype == torch.uint8 and opt.state[b]["m.codes"].dtype == torch.float32
    assert torch.equal(b.detach(), torch.ones(4, 4))


def test_a_module_keeps_its_vectors_wide():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    opt = optimizer(model, "fp8-adam")
    assert [group["states"] for group in opt.param_groups] == ["fp8-adam", "fp32-adam"]
    assert [len(group["params"]) for group in opt.param_groups] == [1, 3]


@pytest.mark.parametrize(
    ("states", "options", "what"),
    [
        ("fp8-adan", {}, r"unknown optimizer 'fp8-adan'; nearest: fp8-adam"),
        ("weight=float32 m=float32", {}, "expected weight=STORAGE m=STORAGE v=STORAGE"),
        ("weight=float32 m=float32 v=e4m3fn/rwo/fp32", {}, "malformed cast"),
        ("fp8-adam", {"lr": -1.0}, "lr must be a number from 0 on, found -1.0"),
        ("fp8-adam", {"betas": (0.9, 1.0)}, "betas must be two numbers from 0 to below 1"),
        ("fp8-adam", {"eps": float("nan")}, "eps must be a number from 0 on"),
        ("fp8-adam", {"backend": "cuda"}, "unknown backend 'cuda'"),
        ("fp8-adam", {"backend": "native"}, "device cpu: kernels need a CUDA device"),
    ],
)
def test_what_is_refused(states, options, what, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    p = torch.nn.Parameter(torch.ones(4, 4))
    p.grad = torch.ones(4, 4)
    with pytest.raises(InputError, match=what):
        NarrowOptimizer([p], states, **options).step()


def test_states_of_another_optimizer_are_refused():
    p = torch.nn.Parameter(torch.ones(4, 4))
    p.grad = torch.ones(4, 4)
    opt = NarrowOptimizer([p], "fp8-adam")
    opt.step()
    saved = opt.state_dict()
    saved["state"][0]["m.codes"] = saved["state"][0]["m.codes"][:5]
    with pytest.raises(InputError, match=r"m\.codes is torch\.uint8"):
        NarrowOptimizer([p], "fp8-adam").load_state_dict(saved)
    other = torch.optim.AdamW([p])
    other.step()
    with pytest.raises(InputError, match="saved by another optimizer"):
        NarrowOptimizer([p], "fp8-adam").load_state_dict(other.state_dict())


def test_sparse_and_integer_parameters_are_refused():
    table = torch.nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse gradient"):
        NarrowOptimizer(table.parameters(), "fp8-adam").step()
    with pytest.raises(InputError, match="expected floating point"):
        NarrowOptimizer([torch.zeros(3, dtype=torch.int64)], "fp8-adam")


def test_methods_count_their_bytes():
    assert method("fp8-adam").bytes_per_parameter(1 << 20) == pytest.approx(4.0, abs=1e-4)
    assert method("fp8-adam-expanded").bytes_per_parameter(1 << 20) == 4 + 11 / 128
