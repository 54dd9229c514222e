"""What every optimizer promises: one table, every member, the same facts."""

import copy
import io

import pytest
import torch

from narrowcast.optim import NarrowOptimizer, optimizer, optimizers

every_optimizer = pytest.mark.parametrize("name", optimizers())

#: bytes of master weight and moments per parameter, and the scales' share of a tensor of 256 x 512
BYTES = {
    "fp32-adam": 12.0,
    "bf16-adam-kahan": 8.0,
    "bf16-adam-sr": 6.0,
    "fp8-adam": 4.0 + 3 * 4 / (256 * 512),
    "fp8-adam-blocks": 4.0 + (1 + 4 + 4) / 128,
    "fp8-adam-expanded": 4.0 + (1 + 5 + 5) / 128,
}


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 9)).to(dtype)


def steps(model: torch.nn.Module, opt: torch.optim.Optimizer, count: int, first: int = 0) -> list[float]:
    losses = []
    dtype = next(model.parameters()).dtype
    for step in range(first, first + count):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(32, 24, generator=g)
        loss = (model(x.to(dtype)) - (x[:, :9] - x[:, 9:18]).to(dtype)).float().square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses


def bits(opt: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor that a further step depends on, as bytes."""
    found = []
    for group in opt.param_groups:
        for p in group["params"]:
            found.append(p.detach())
            found += [t for _, t in sorted(opt.state[p].items())]
    return [t.reshape(-1).contiguous().view(torch.uint8) for t in found]


@every_optimizer
def test_it_learns_as_the_reference_does(name):
    model, reference = network(), network()
    first, *_, last = steps(model, optimizer(model, name, lr=3e-2), 40)
    *_, wide = steps(reference, torch.optim.AdamW(reference.parameters(), lr=3e-2), 40)
    assert last < first / 10
    assert last < 1.15 * wide  # one batch's loss, whose own spread over seeds is a tenth


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_resumes_bit_for_bit(name, dtype):
    whole, half = network(dtype), network(dtype)
    a, b = optimizer(whole, name, lr=1e-2, seed=3), optimizer(half, name, lr=1e-2, seed=3)
    steps(whole, a, 6)
    steps(half, b, 3)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(saved["model"])
    c = optimizer(resumed, name, lr=1.0, seed=3)
    c.load_state_dict(saved["optimizer"])
    steps(resumed, c, 3, first=3)
    assert all(map(torch.equal, bits(a), bits(c)))


@every_optimizer
def test_its_states_are_plain_tensors_of_the_bytes_it_counts(name):
    p = torch.nn.Parameter(torch.randn(256, 512).bfloat16())
    p.grad = torch.randn_like(p)
    opt = NarrowOptimizer([p], name)
    opt.step()
    assert opt.nbytes / p.numel() == pytest.approx(BYTES[name], abs=1e-9)
    held = sum(t.nbytes for key, t in opt.state[p].items() if key != "step")
    carried = {"bf16-adam-kahan": 2, "bf16-adam-sr": 2}.get(name, 0)  # by the parameter itself
    assert held / p.numel() == pytest.approx(BYTES[name] - carried, abs=1e-4)
    assert all(type(t) is torch.Tensor for t in opt.state[p].values())


@every_optimizer
def test_it_is_a_torch_optimizer(name):
    model = network()
    opt = optimizer(model, name, lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.1)
    assert isinstance(opt, torch.optim.Optimizer)
    steps(model, opt, 1)
    schedule.step()
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([1e-3, 1e-3])
    assert [group["weight_decay"] for group in opt.param_groups] == [1e-2, 0.0]
    assert copy.deepcopy(opt).state_dict()["param_groups"] == opt.state_dict()["param_groups"]


@every_optimizer
def test_no_gradient_no_step(name):
    model = network()
    opt = optimizer(model, name)
    before = [p.detach().clone() for p in model.parameters()]
    opt.step()
    assert all(map(torch.equal, before, model.parameters())) and not opt.state


@every_optimizer
def test_any_shape(name):
    shapes = [(), (1,), (127,), (129,), (3, 5, 7), (0, 4)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    params.append(torch.nn.Parameter(torch.randn(6, 50).t()))  # not contiguous
    opt = NarrowOptimizer(params, name, lr=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in params]
        opt.step()
        assert all(bool((p < q).all()) for p, q in zip(params, before, strict=True))


@every_optimizer
def test_zero_stays_zero_and_poison_shows(name):
    p = torch.nn.Parameter(torch.zeros(300))
    opt = NarrowOptimizer([p], name)
    p.grad = torch.zeros_like(p)
    opt.step()
    assert torch.equal(p.detach(), torch.zeros(300))
    p.grad[7] = torch.nan
    opt.step()
    assert p.isnan()[7]
