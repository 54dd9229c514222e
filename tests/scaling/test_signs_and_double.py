"""Scales by sign (AFPQ) and quantized scales (QLoRA): worked examples, published ratios, storage, edges."""

import numpy as np
import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.quantize import cast
from narrowcast.scaling import BySign, Double, scale_rule

G = torch.Generator().manual_seed(0)


def test_the_papers_groups():
    x = torch.tensor([[-1.0, 0.0, 0.5, 6.0]])
    assert torch.equal(cast("e2m1fn/row/fp32-signs").apply(x), x)
    lopsided = torch.tensor([[-0.6, 0.1, 6.0]])
    assert cast("e2m1fn/row/fp32-signs").apply(lopsided)[0].tolist() == pytest.approx([-0.6, 0.0, 6.0], abs=1e-7)
    assert cast("e2m1fn/row/fp32").apply(lopsided).tolist() == [[-0.5, 0.0, 6.0]]
    even = torch.tensor([[-3.0, 0.7, -1.1, 3.0]])
    assert torch.equal(cast("e2m1fn/row/fp32-signs").apply(even), cast("e2m1fn/row/fp32").apply(even))
    one_sided = torch.tensor([[1.0, 2.0, 0.0, 5.0]])
    assert torch.equal(cast("e2m1fn/row/fp32-signs").apply(one_sided), cast("e2m1fn/row/fp32").apply(one_sided))


@pytest.mark.parametrize(
    ("fmt", "group", "ratio"),
    [("e2m1fn", 32, 0.867), ("e2m1fn", 128, 0.9425), ("e2m0_none", 32, 0.831), ("e2m0_none", 128, 0.8985)],
)
def test_mean_square_errors_on_normal_weights_fall_as_measured_for_the_sheet(fmt, group, ratio):
    x = torch.randn(8192, group, generator=G)
    by_sign, plain = (((cast(f"{fmt}/row/{scale}").apply(x) - x) ** 2).mean() for scale in ("fp32-signs", "fp32"))
    assert float(by_sign / plain) == pytest.approx(ratio, abs=0.02)


def test_a_second_scale_is_stored_and_counted():
    q = cast("e2m1fn/1x128/float16-signs").quantize(torch.randn(8, 256, generator=G))
    assert q.scales.shape == (8, 2, 2) and q.nbytes == 8 * 256 // 2 + 16 * 2 * 2
    assert cast("e2m1fn/1x128/float16-signs").bits_per_element((8, 256)) == 4.25
    part = q.rows(2, 5)
    assert torch.equal(part.dequantize(), q.dequantize()[2:5])


def test_settled_scales_stay_by_sign_where_values_change_theirs():
    c = cast("e2m1fn/1x4/fp32-signs")
    settled = c.settle(torch.tensor([[-6.0, 0.0, 1.0, 12.0]]))
    assert settled.apply(torch.tensor([[5.9, -12.0, 11.9, -0.4]])).tolist() == [[6.0, -6.0, 12.0, -0.5]]
    assert torch.equal(
        settled.quantize(torch.tensor([[5.9, -12.0, 11.9, -0.4]])).dequantize(), torch.tensor([[6.0, -6.0, 12.0, -0.5]])
    )


def test_double_quantization_costs_what_the_paper_says_and_is_its_arithmetic():
    x = torch.randn(64, 4096, generator=G)
    c = cast("nf4/1x64/dynamic8+fp32x256-mean")
    assert c.bits_per_element((64, 4096)) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-4)
    q = c.quantize(x)
    assert q.nbytes * 8 / x.numel() == pytest.approx(c.bits_per_element((64, 4096)), abs=1e-4)
    exact = x.view(-1, 64).abs().amax(1).double().numpy()
    codes = cast("dynamic8").format.values().numpy()
    off = exact - exact.mean()
    expected = np.empty_like(exact)
    for start in range(0, len(off), 256):
        part = off[start : start + 256]
        top = np.abs(part).max()
        expected[start : start + 256] = codes[np.abs(part[:, None] / top - codes).argmin(1)] * top + exact.mean()
    found = c.scale.restore(q.scales, q.tensor_scale)[0].flatten().double().numpy()
    assert np.abs(found - expected).max() < 1e-6
    plain = cast("nf4/1x64/fp32")
    worse = ((c.apply(x) - x) ** 2).mean() / ((plain.apply(x) - x) ** 2).mean()
    assert float(worse) == pytest.approx(1.0, abs=1e-3)  # what the scales lose does not show


def test_taking_the_mean_off_is_worth_it_and_a_tile_far_below_the_others_becomes_zero():
    x = torch.randn(64, 4096, generator=G)
    mean = ((cast("nf4/1x64/int4+fp32x256-mean").apply(x) - x) ** 2).mean()
    plain = ((cast("nf4/1x64/int4+fp32x256").apply(x) - x) ** 2).mean()
    assert mean < plain
    tiny = torch.cat([torch.ones(1, 32), torch.full((1, 32), 1e-9)])
    assert cast("int8/row/int4+fp32x2").apply(tiny).tolist()[1] == [0.0] * 32


def test_rows_of_double_quantized_tensors_stay_together():
    q = cast("int4/1x16/e4m3fn+fp32x4").quantize(torch.randn(4, 32, generator=G))
    with pytest.raises(InputError, match="quantize the rows apart"):
        q.rows(0, 2)


@pytest.mark.parametrize(
    "spelling", ["fp32-signs", "float16-signs", "e8m0-ceil-signs", "e4m3fn+fp32x256", "dynamic8+fp32x64-mean"]
)
def test_spellings_read_back(spelling):
    rule = scale_rule(spelling)
    assert str(rule) == spelling and scale_rule(str(rule)) == rule and isinstance(rule, BySign | Double)


@pytest.mark.parametrize(
    "spelling",
    ["one-signs", "e4m3fn+fp32-signs", "fp32-delayed16-signs", "fp32-signs-signs", "e4m3fn+fp32x0", "float32+fp32x4"],
)
def test_impossible_rules_are_refused(spelling):
    with pytest.raises(InputError):
        scale_rule(spelling)
