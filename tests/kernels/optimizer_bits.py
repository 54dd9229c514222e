"""The fused optimizer step against the definition, bit for bit: on a GPU where there is one, else in the interpreter.

Not collected by name: `test_optimizer_kernel.py` runs this file in a process of its own.
"""

import pytest
import torch

from narrowcast.optim import NarrowOptimizer, optimizers

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MORE = (
    "weight=bfloat16 m=e4m3fn/1x128+pad/fp32/stochastic v=e5m2/tensor/e8m0-ceil",
    "weight=float16/tensor/e8m0-ceil m=e5m2/1x128+pad/expanded v=bfloat16x2",
)
TYPES = {"f": torch.float32, "b": torch.bfloat16, "h": torch.float16}
SIZES = ((1152, 0.02), (128, 1e-3), (300, 1.0), (7, 30.0))  # the first two are read 16 bytes at a time


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(3)
    made = [torch.randn(n, generator=g) * scale for n, scale in SIZES]
    made[1][5:20] = 0
    return [torch.nn.Parameter(p.to(dtype).to(DEVICE)) for p in made]


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Spread over eight decades; whole groups of zeros; NaN and infinity in the last step."""
    g = torch.Generator().manual_seed(step)
    decades = [torch.randint(-6, 2, (n,), generator=g) for n, _ in SIZES]
    made = [torch.randn(n, generator=g) * 10.0**d for (n, _), d in zip(SIZES, decades, strict=True)]
    made[0][:130] = 0
    if step == 2:
        made[0][200], made[2][3], made[2][200] = -torch.inf, torch.nan, torch.inf
    return [x.to(dtype).to(DEVICE) for x in made]


def wrong(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many elements differ, all NaNs alike."""
    return int(((a != b) & ~(a.isnan() & b.isnan())).sum())


CASES = list(zip([*optimizers(), *MORE], ("b", "f", "b", "b", "f", "b", "h", "f"), strict=True))


@pytest.mark.parametrize(("states", "kind"), CASES)
def test_every_part_of_the_state(states, kind):
    found, expected = parameters(TYPES[kind]), parameters(TYPES[kind])
    native = NarrowOptimizer(found, states, lr=1e-2, seed=(77 << 32) + 5, backend="native")
    plain = NarrowOptimizer(expected, states, lr=1e-2, seed=(77 << 32) + 5, backend="emulate")
    for step in range(3):
        for p, q, g in zip(found, expected, gradients(step, TYPES[kind]), strict=True):
            p.grad, q.grad = g, g.clone()
        native.step()
        plain.step()
        for number, (p, q) in enumerate(zip(found, expected, strict=True)):
            assert not wrong(p.detach(), q.detach()), (step, number)
            differ = {k: n for k, t in plain.state[q].items() if (n := wrong(native.state[p][k], t))}
            assert not differ, (step, number)


def test_odd_places_and_strides():
    """A view that starts off 16 bytes, a transposed parameter, and an empty one."""
    base = torch.linspace(-1, 1, 1025, device=DEVICE)
    for backend in ("native", "emulate"):
        views = [base[1:].clone()[3:], torch.arange(60.0, device=DEVICE).view(6, 10).t(), base[:0]]
        params = [torch.nn.Parameter(v) for v in views]
        opt = NarrowOptimizer(params, "fp8-adam-blocks", lr=1e-2, backend=backend)
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        opt.step()
        if backend == "native":
            kept = [p.detach().clone() for p in params]
    assert all(map(torch.equal, kept, params))
