"""The core maths of post-training quantization, over many casts: exact facts and guaranteed inequalities."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.ptq import AbsMax, LeastError, Percentile, Solver, awq, gptq, output_error, smooth
from narrowcast.quantize import cast

CASTS = [
    "int4/1x32/fp32",
    "e2m1fn/1x32/e8m0",
    "e2m1fn/1x16/e4m3fn+fp32",
    "int8/row/fp32",
    "e4m3fn/16x32/fp32",
    "int3/tensor/fp32",
]
every_cast = pytest.mark.parametrize("spelling", CASTS)


def layer(seed: int = 0, n: int = 48, k: int = 96, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the H of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, k, generator=g) @ (torch.eye(k) + 0.3 * torch.randn(k, k, generator=g))
    return torch.randn(n, k, generator=g), x.T @ x


@every_cast
def test_settled_scales_are_the_casts_own(spelling):
    w, _ = layer()
    c = cast(spelling)
    settled = c.settle(w)
    assert torch.equal(settled.apply(w), c.apply(w))
    assert torch.equal(settled.quantize(w).codes, c.quantize(w).codes)
    assert torch.equal(settled.quantize(w).dequantize(), c.apply(w))
    assert torch.equal(c.settle(w, torch.ones(settled.tiles)).apply(w), c.apply(w))


@every_cast
def test_gptq_with_an_identity_hessian_rounds_to_nearest(spelling):
    w, _ = layer()
    settled = cast(spelling).settle(w)
    found = gptq(w, 3.0 * torch.eye(w.shape[1]), settled)
    assert torch.equal(found.values, settled.apply(w)) and found.note == ""


@every_cast
@pytest.mark.parametrize("order", [True, False])
def test_gptq_beats_rounding_to_nearest_and_its_codes_decode_to_its_values(spelling, order):
    w, h = layer()
    settled = cast(spelling).settle(w)
    found = gptq(w, h, settled, Solver(order=order))
    assert output_error(w, found.values, h) < output_error(w, settled.apply(w), h)
    assert torch.equal(found.quantized.dequantize(), found.values)
    assert torch.equal(found.quantized.scales, settled.scale.stored)


@every_cast
def test_descent_never_does_worse_and_ends_where_no_single_change_helps(spelling):
    w, h = layer()
    settled = cast(spelling).settle(w)
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
    plain, one, many = (gptq(w, h, settled, Solver(refine=n, block=32)).values for n in (0, 1, 12))
    errors = [output_error(w, v, damped) for v in (plain, one, many)]
    assert errors[0] > errors[1] >= errors[2] - 1e-9
    assert torch.equal(gptq(w, h, settled, Solver(refine=1, block=32)).quantized.dequantize(), one)
    again = gptq(w, h, settled, Solver(refine=13, block=32)).values
    assert (again != many).float().mean() < 1e-3


def test_the_block_size_changes_only_the_speed():
    w, h = layer()
    settled = cast("int4/1x32/fp32").settle(w)
    one, all_ = (gptq(w, h, settled, Solver(block=b)).values for b in (1, 96))
    assert (one != all_).float().mean() < 0.01  # sums in another order: a tie may fall elsewhere, and what follows it


def test_the_first_columns_match_a_scalar_gptq():
    w, h = layer(n=3, k=6)
    settled = cast("int4/row/fp32").settle(w)
    damped = h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(6)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    scale = settled.scale.back[0]
    expected = w.double().clone()
    for row in range(3):
        for i in range(6):
            q = (expected[row, i] / scale[row, 0]).round().clamp(-7, 7) * scale[row, 0]
            error = (expected[row, i] - q) / upper[i, i]
            for j in range(i + 1, 6):
                expected[row, j] -= error * upper[i, j]
            expected[row, i] = q
    found = gptq(w, h, settled, Solver(order=False)).values
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_dead_inputs_are_rounded_to_nearest_and_say_nothing():
    w, h = layer()
    h[:, 5] = h[5, :] = 0
    settled = cast("int4/1x32/fp32").settle(w)
    found = gptq(w, h, settled)
    assert torch.equal(found.values[:, 5], settled.apply(w)[:, 5]) and found.note == ""


def test_what_cannot_be_factorised_is_rounded_and_said():
    w, h = layer()
    settled = cast("int4/1x32/fp32").settle(w)
    found = gptq(w, h - 2 * h.diagonal().max() * torch.eye(len(h)), settled)
    assert "rounded to nearest" in found.note and torch.equal(found.values, settled.apply(w))
    x = torch.randn(4, 96)
    few = gptq(w, x.T @ x, settled, Solver(damping=0.0))
    assert "needed damping" in few.note


def test_gptq_refuses_what_does_not_fit():
    w, h = layer()
    settled = cast("int4/1x32/fp32").settle(w)
    for bad in [
        (w[:, :64], h, settled),
        (w, h[:64, :64], settled),
        (w * torch.nan, h, settled),
        (w, h * torch.nan, settled),
    ]:
        with pytest.raises(InputError, match="gptq"):
            gptq(*bad)
    with pytest.raises(InputError, match="random"):
        gptq(w, h, cast("int4/1x32/fp32/stochastic").settle(w))
    with pytest.raises(InputError, match="transform"):
        cast("int4/1x32/fp32/nearest-even/hadamard32").settle(w)


@every_cast
@pytest.mark.parametrize("power", [2.0, 2.4])
def test_a_search_never_does_worse_than_absmax_by_its_own_measure(spelling, power):
    w, _ = layer()
    w[0, 0] = 30.0
    c = cast(spelling)
    search = LeastError(power=power, steps=40)
    error = ((search.settle(w, c).apply(w) - w).abs() ** power).sum()
    plain = ((c.apply(w) - w).abs() ** power).sum()
    assert error <= plain
    if spelling in ("int4/1x32/fp32", "int3/tensor/fp32"):
        assert error < plain


def test_scales_by_sign_are_searched_apart():
    w, _ = layer()
    c, search = cast("int4/1x32/fp32-signs"), LeastError(2.0, steps=20)
    ratios = search.ratio(w, c)
    assert ratios is not None and ratios.shape == c.settle(w).tiles == (48, 3, 2)
    assert (ratios[..., 0] != ratios[..., 1]).any()

    def errors(ratio):
        return (c.settle(w, ratio).apply(w) - w).square().view(48, 3, 32).sum(-1)

    together = torch.stack([errors(torch.tensor(1 - i * 0.04)) for i in range(20)]).amin(0)
    assert (errors(ratios) <= together + 1e-6).all() and errors(ratios).sum() < together.sum()


def test_a_search_matches_a_brute_force_over_its_ratios():
    w = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    c, search = cast("int3/row/fp32"), LeastError(2.0, steps=10)
    ratios = [1 - 0.08 * i for i in range(10)]
    errors = [float(((c.settle(w, torch.tensor([[r]])).apply(w) - w) ** 2).sum()) for r in ratios]
    assert float(search.ratio(w, c)) == pytest.approx(ratios[errors.index(min(errors))])


def test_percentile_is_the_kth_magnitude():
    w = torch.arange(1.0, 101.0).view(1, 100)
    settled = Percentile(90).settle(w, cast("int8/row/fp32"))
    assert float(settled.scale.stored) == pytest.approx(90 / 127)
    assert AbsMax().ratio(w, cast("int8/row/fp32")) is None
    assert torch.equal(Percentile(100).settle(w, cast("int8/row/fp32")).apply(w), cast("int8/row/fp32").apply(w))
    zeros = torch.zeros(4, 64)
    assert torch.equal(Percentile(50).settle(zeros, cast("int8/2x32/fp32")).apply(zeros), zeros)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Percentile(0),
        lambda: Percentile(101),
        lambda: LeastError(0),
        lambda: LeastError(steps=0),
        lambda: Solver(-1.0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_smooth_equalises_at_one_half_and_leaves_dead_channels():
    w = torch.tensor([[4.0, 1.0, 0.0, 2.0]])
    x = torch.tensor([1.0, 16.0, 3.0, 0.0])
    s = smooth(x, [w])
    assert s.tolist() == [0.5, 4.0, 1.0, 1.0]
    assert torch.equal((x / s)[:2], (w[0] * s)[:2])
    with pytest.raises(InputError, match="alpha"):
        smooth(x, [w], 1.5)
    with pytest.raises(InputError, match="channels"):
        smooth(x, [w[:, :2]])


def test_awq_protects_channels_that_are_often_large():
    w, _ = layer()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 96, generator=g)
    x[:, :3] *= 40
    h, c = x.T @ x, cast("int3/1x32/fp32")
    s, exponent = awq(x.abs().mean(0), h, [w], c)
    assert exponent > 0 and s[:3].min() > s[3:].max()
    balanced = c.apply(w * s) / s
    assert output_error(w, balanced, h) < output_error(w, c.apply(w), h)
    assert awq(x.abs().mean(0), h, [w], c, steps=1, duo=False)[1] == 0.0
    plain = awq(x.abs().mean(0), h, [w], c, duo=False)[0]
    assert output_error(w, balanced, h) <= output_error(w, c.apply(w * plain) / plain, h)
