"""Every operation of a program rounded: results, gradients, writes in place, and a table without silent skips."""

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.references import round_one
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import narrowcast as nc
from narrowcast.arithmetic.carriers import digits, fits
from narrowcast.errors import InputError
from narrowcast.formats import format, formats, rounding


def on_grid(x: torch.Tensor, name: str) -> bool:
    return torch.equal(format(name).round(x.detach()).to(x.dtype), x.detach())


def rows(ops, op: str) -> list[tuple[int, str, str]]:
    return [(row.calls, row.became, row.why) for row in ops.rows() if row.op == op]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- results ---


@pytest.mark.parametrize("mode", ["nearest-even", "toward-zero", "up", "odd"])
@pytest.mark.parametrize("name", ["e4m3fn", "bfloat16", "q3.12", "float32"])
def test_elementary_operations_are_correctly_rounded(name, mode):
    """Of operands in the format; against exact rational arithmetic rounded once."""
    fmt = format(name)
    x, y = (fmt.round(numbers(40, seed=s) * 2) for s in (1, 2))
    y = torch.where(y == 0, 1.0, y)
    with nc.arithmetic(name, rounding=mode, carrier="float64"):
        found = {"+": x + y, "-": x - y, "*": x * y, "/": x / y}
    if name == "float32":
        return check_float32(found, x, y, mode)
    exact = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    for sign, result in found.items():
        for a, b, r in zip(x.tolist(), y.tolist(), result.tolist(), strict=True):
            value = exact[sign](Fraction(a), Fraction(b))
            assert r == round_fraction(fmt, value, mode), (a, sign, b)
    return None


def check_float32(found, x, y, mode) -> None:
    a, b = x.numpy(), y.numpy()
    if mode == "nearest-even":  # IEEE's own float32 unit
        for sign, want in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b)):
            assert np.array_equal(found[sign].numpy(), want)


def round_fraction(fmt, value: Fraction, mode: str) -> float:
    """Round a rational through a double that lies strictly between the same neighbours, or is the value."""
    near = float(value)
    if Fraction(near) != value:  # never a tie then: any double on the same side of the tie will do
        near = np.nextafter(near, np.inf if Fraction(near) < value else -np.inf) if not on_one_side(fmt, near) else near
    return round_one(fmt, near, mode)


def on_one_side(fmt, near: float) -> bool:
    """Whether ``near`` is neither a value of the format nor half way between two."""
    x = torch.tensor([near], dtype=torch.float64)
    low, high = (v.item() for v in fmt.neighbours(x))
    return near not in (low, high, (low + high) / 2)


@pytest.mark.parametrize("name", ["e8m12", "posit16_1"])
def test_a_wide_format_is_carried_by_float64(name):
    """12 + 1 bits: float32 sums of such numbers, rounded again, are now and then another number."""
    fmt = nc.format(name)
    assert digits(fmt) == 13
    x, y = (fmt.round(numbers(200_000, seed=s)) for s in (3, 4))
    with nc.arithmetic(fmt):
        once = x / y
    with nc.arithmetic(fmt, carrier="float32"):
        twice = x / y
    assert torch.equal(once, fmt.round(x.double() / y.double()))
    assert once.dtype == torch.float32 and not torch.equal(once, twice)


def test_digits_and_what_holds_them():
    assert {name: digits(format(name)) for name in ("e4m3fn", "bfloat16", "float16", "int8", "e8m0", "float32")} == {
        "e4m3fn": 4, "bfloat16": 8, "float16": 11, "int8": 7, "e8m0": 1, "float32": 24,
    }  # fmt: skip
    assert fits(format("e4m3fn"), torch.bfloat16) and fits(format("int8"), torch.float16)
    assert not fits(format("float16"), torch.bfloat16) and not fits(format("bfloat16"), torch.float16)


def test_a_harmonic_series_stalls_and_stochastic_rounding_keeps_it_going():
    """Sheet 93: in bfloat16 the sum stops where 1/k is below half a step; random rounding goes on."""

    def series(mode: str) -> list[float]:
        total, sums = torch.zeros(()), []
        with nc.arithmetic("bfloat16", rounding=mode, seed=1):
            for k in range(1, 300):
                total = total + 1 / torch.tensor(float(k))
                sums.append(total.item())
        return sums

    nearest, dithered = series("nearest-even"), series("stochastic")
    assert nearest[-1] == nearest[64] == 5.0625  # 1/65 < 2**-6, half a step beyond 4
    exact = float(np.log(299) + 0.57722)
    assert abs(dithered[-1] - exact) < 0.6 < exact - nearest[-1]


def test_stochastic_roundings_differ_and_repeat():
    x = numbers(1000)
    with nc.arithmetic("e5m2", rounding="stochastic", seed=5):
        first, second = x * 1.0, x * 1.0
    with nc.arithmetic("e5m2", rounding="stochastic", seed=5):
        again = x * 1.0
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert on_grid(first, "e5m2")


# --- backward ---


class Threads(TorchDispatchMode):
    """Notes which thread each operation ran on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func), threading.get_ident()))
        return func(*args, **(kwargs or {}))


def test_backward_runs_where_dispatch_modes_see_it():
    w = numbers(4, 4).requires_grad_()
    y = (numbers(2, 4) @ w).exp().sum()
    with Threads() as modes:
        y.backward()
    assert any("mm" in name for name, _ in modes.seen)
    assert {thread for _, thread in modes.seen} == {threading.get_ident()}


def test_gradients_are_rounded_at_every_operation():
    """Checked by hand through y = exp(x w): each gradient is a product of rounded factors, rounded."""
    fmt = format("e4m3fn")
    x, w = fmt.round(numbers(3)), fmt.round(numbers(3, seed=1)).requires_grad_()
    with nc.arithmetic("e4m3fn") as ops:
        y = (x * w).exp()
        y.sum().backward()
    product = fmt.round(x * w.detach())
    result = fmt.round(product.exp())
    assert torch.equal(y.detach(), result)
    assert torch.equal(w.grad, fmt.round(fmt.round(1.0 * result) * x))  # exp saved its rounded result
    assert rows(ops, "exp") == [(1, "e4m3fn", "")] and sum(r[0] for r in rows(ops, "mul")) == 3


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.GELU()
    )


def test_a_whole_training_step_stays_on_the_grid():
    model, x = small_model(), numbers(2, 1, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with nc.arithmetic("e5m3") as ops:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.tensor([1, 2])).backward()
            optimizer.step()
    for name, p in model.named_parameters():
        assert on_grid(p, "e5m3") and on_grid(p.grad, "e5m3"), name
        assert on_grid(optimizer.state[p]["momentum_buffer"], "e5m3")
    assert on_grid(model[1].running_mean, "e5m3") and on_grid(model[1].running_var, "e5m3")  # written unannounced
    assert {row.became for row in ops.rows()} == {"e5m3", "as it was"}
    assert all(row.why for row in ops.rows() if row.became == "as it was")


def test_outside_the_block_nothing_is_rounded_and_the_model_is_untouched():
    model, x = small_model(), numbers(2, 1, 6, 6)
    model.eval()
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    with nc.arithmetic("e4m3fn"):
        inside = model(x)
    assert torch.equal(model(x), before) and not torch.equal(inside, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_float32_arithmetic_changes_nothing():
    model, x = small_model(), numbers(2, 1, 6, 6)
    model.eval()
    with nc.arithmetic("float32", carrier="float32"):
        assert torch.equal(model(x), model(x))
        inside = model(x)
    assert torch.equal(inside, model(x))


# --- what is left alone ---


def test_views_and_moves_keep_their_numbers():
    x = numbers(4, 6)
    with nc.arithmetic("e2m1fn") as ops:
        moved = [x.T, x[1:3], x.reshape(2, 12), x.clone(), torch.cat([x, x]), x.gather(1, torch.zeros(4, 1).long()),
                 torch.where(x > 0, x, x), F.pad(x, (1, 1)), x.tril(), x.flip(0), x.sort().values, F.embedding(torch.tensor([1]), x),
                 x.new_empty(3).copy_(x[0, :3]), x.masked_fill(x > 9, 0.0), x[torch.tensor([0, 2])], x.to(torch.float32)]  # fmt: skip
    known = set(x.flatten().tolist()) | {0.0}
    assert all(set(m.flatten().tolist()) <= known for m in moved)
    assert all(row.became == "as it was" for row in ops.rows() if row.op not in ("zeros", "scalar_tensor"))


def test_a_change_of_dtype_is_rounded_and_integers_are_not():
    with nc.arithmetic("e4m3fn") as ops:
        assert (torch.tensor([17, 300]) + 1).tolist() == [18, 301]
        assert torch.tensor([17, 300]).float().tolist() == [16, 288]
        assert (numbers(3) > 0).dtype == torch.bool
        assert torch.complex(numbers(2), numbers(2)).add(1).is_complex()
    assert (1, "as it was", "no floating-point result") in rows(ops, "gt")
    assert (1, "as it was", "complex numbers") in rows(ops, "add")


# --- in place and out= ---


def test_writes_land_where_they_should():
    x, fmt = numbers(4, 6), format("e4m3fn")
    base, plain = x.clone(), x.clone()
    with nc.arithmetic("e4m3fn"):
        same = base[1].mul_(1.1)
        out = torch.empty(6)
        returned = torch.add(x[0], x[1], out=out)
        torch._foreach_add_([a := x.clone()], 0.1)
        columns = x.T.contiguous().T.mul_(1.1)
    assert same.data_ptr() == base[1].data_ptr() and returned is out
    assert torch.equal(base[1], fmt.round(x[1] * 1.1)) and torch.equal(base[0], plain[0])
    assert torch.equal(out, fmt.round(x[0] + x[1]))
    assert torch.equal(a, fmt.round(x + 0.1))
    assert torch.equal(columns, fmt.round(x * 1.1)) and columns.stride() == (1, 4)


@pytest.mark.parametrize("carrier", ["float32", "float64"])
def test_both_carriers_write_the_same_places(carrier):
    x = numbers(3, 5)
    with nc.arithmetic("bfloat16", carrier=carrier):
        y = x.clone()
        assert y.add_(1.0) is y
        assert y.dtype == torch.float32 and (y * x).dtype == torch.float32
        assert (x.double() * 2).dtype == torch.float64 and x.sum(dtype=torch.float64).dtype == torch.float64
        assert (x.long() * x).dtype == torch.float32 and x.argmax().dtype == torch.int64
        values, indices = x.max(dim=1)
    assert on_grid(y, "bfloat16") and on_grid(values, "bfloat16")
    assert torch.equal(indices, x.max(dim=1).indices)


def test_random_numbers_are_those_the_program_would_have_drawn():
    fmt = nc.format("e8m12")  # carried by float64, which would draw others
    torch.manual_seed(3)
    plain = torch.randn(100)
    torch.manual_seed(3)
    with nc.arithmetic(fmt):
        assert torch.equal(torch.randn(100), fmt.round(plain))


# --- exceptions, autocast, accumulators ---


def test_exceptions_by_operation():
    x = numbers(4, 8)
    with nc.arithmetic("e4m3fn", exceptions={"softmax": None, "mul*": "bfloat16", "tanh": None}) as ops:
        shares, square, in_place, power = (x + 0.0).softmax(-1), x * x, x.clone().mul_(x), x.exp()
    assert torch.equal(shares, format("e4m3fn").round(x).softmax(-1))
    assert on_grid(square, "bfloat16") and not on_grid(square, "e4m3fn")
    assert on_grid(in_place, "bfloat16") and on_grid(power, "e4m3fn")
    assert rows(ops, "_softmax") == [(1, "as it was", "exception 'softmax'")]
    assert rows(ops, "tanh") == [(0, "-", "an exception that no operation met")]
    assert "exception 'softmax'" in str(ops) and ops.to_json()[0]["op"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exceptions": {"softmx": None}}, "'softmx' matches no operation of aten; nearest: softmax"),
        ({"exceptions": {"linear": None}}, "'linear' names an operation that is made of others"),
        ({"exceptions": {"mm": "e4m4x"}}, "unknown format"), ({"format": "e8m0"}, "no arithmetic can be done in it"),
        ({"format": "uint8"}, "no zero or no negative numbers"), ({"carrier": "bf16"}, "unknown carrier"),
        ({"accumulator": "bf16"}, "malformed accumulator"), ({"rounding": "best"}, "unknown rounding"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_clear_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        nc.arithmetic(**{"format": "e4m3fn", **settings})
    assert "\n" not in str(error.value)


def test_autocast_with_a_format_that_bfloat16_holds_and_with_one_it_does_not():
    model, x = nn.Linear(8, 8), numbers(4, 8)
    with nc.arithmetic("e4m3fn"), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16 and on_grid(y, "e4m3fn")
    with (
        pytest.raises(
            InputError, match=r"torch.bfloat16 cannot hold the numbers of float16: run the program in float32"
        ),
        nc.arithmetic("float16"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(x)


def test_inference_mode_and_attention_meet_the_same_operations():
    model, x = nn.Linear(8, 8), numbers(4, 8)
    with nc.arithmetic("e4m3fn") as plain:
        expected = model(x)
    with torch.inference_mode(), nc.arithmetic("e4m3fn") as ops:
        assert torch.equal(model(x), expected)
    assert rows(ops, "addmm") == rows(plain, "addmm") == [(1, "e4m3fn", "")] and not rows(ops, "linear")


def test_an_accumulator_sums_inside_products():
    fmt, acc = format("e5m7"), nc.accumulator("bf16-sequential")
    x, w, b = numbers(3, 20), numbers(5, 20, seed=1), numbers(5, seed=2)
    image, filters = numbers(2, 4, 7, 7, seed=3), numbers(6, 2, 3, 3, seed=4)
    with nc.arithmetic("e5m7", accumulator="bf16-sequential") as ops:
        y, z, total, mean = x @ w.T, F.linear(x, w, b), x.sum(), x.mean(1, keepdim=True)
        batch, dot, vector = torch.bmm(x[None], w.T[None]), x[0] @ w[0], w @ x[0]
        maps = F.conv2d(image, filters, stride=2, padding=1, groups=2)
    product = fmt.round(acc.matmul(x, w))
    assert torch.equal(y, product) and torch.equal(batch[0], product) and torch.equal(vector, product[0])
    assert dot == product[0, 0] and torch.equal(z, fmt.round(product.double() + b.double()))
    assert total == fmt.round(acc.matmul(x.reshape(1, -1), torch.ones(1, 60))).item()
    sums = fmt.round(acc.matmul(x, torch.ones(1, 20)))
    assert torch.equal(mean, fmt.round(sums.double() / 20))
    exact = F.conv2d(image, filters, stride=2, padding=1, groups=2)
    assert maps.shape == exact.shape and on_grid(maps, "e5m7") and (maps - exact).abs().max() < 0.2
    patch = F.unfold(image[:, :2], 3, padding=1, stride=2)[0, :, 5]
    assert maps[0, 0].flatten()[5] == fmt.round(acc.matmul(filters[:1].reshape(1, -1), patch[None])).item()
    assert all(
        row.why == "summed by bfloat16-sequential" for row in ops.rows() if row.op in ("mm", "sum", "convolution")
    )


def test_sums_that_stay_with_the_library_are_marked():
    with nc.arithmetic("e5m7", accumulator="fp32/split4/bf16") as ops:
        numbers(4, 8).softmax(-1)
        F.conv1d(numbers(1, 2, 8), numbers(2, 2, 3))
    for op in ("_softmax", "convolution"):
        assert rows(ops, op) == [(1, "e5m7", "inner sums by the library")]


def test_inside_takes_fused_operations_apart():
    x, fmt = numbers(3, 8), format("e4m3fn")
    with nc.arithmetic("e4m3fn", inside=True) as ops:
        y = x.softmax(-1)
    shifted = fmt.round(x - fmt.round(x.amax(-1, keepdim=True)))
    weights = fmt.round(shifted.exp())
    assert torch.equal(y, fmt.round(weights / fmt.round(weights.sum(-1, keepdim=True))))
    assert {"amax", "sub", "exp", "sum", "div"} <= {row.op for row in ops.rows()} and not rows(ops, "_softmax")


def test_operands_are_rounded_on_the_way_in():
    x, w, fmt = numbers(3, 8), numbers(4, 8, seed=1), format("e4m3fn")
    with nc.arithmetic("e4m3fn", operands=True):
        y, z = x @ w.T, x.clone().add_(x)
    assert torch.equal(y, fmt.round(fmt.round(x) @ fmt.round(w).T))
    assert torch.equal(z, fmt.round(x + fmt.round(x)))  # what is written enters as it is


def test_every_format_with_a_zero_can_be_computed_in():
    x, y = numbers(50), numbers(50, seed=1)
    for fmt in formats().values():
        if fmt.round(torch.tensor([0.0])).isnan().any() or not (fmt.round(torch.tensor([-1.0])) < 0).all():
            continue
        with nc.arithmetic(fmt, rounding=rounding("toward-zero")):
            z = x * y
        assert torch.equal(z, fmt.round((x.double() * y.double()), rounding("toward-zero")).nan_to_num()), fmt
