"""Presets against the numbers of the papers that name them, and against a library that has them."""

import math

import numpy as np
import pytest
import torch

import narrowcast as nc
from narrowcast.quantize import PRESETS, cast
from tests.witnesses import first_difference

BFP = [name for name in PRESETS if name.startswith("bfp")]


def sqnr(spelling: str, x: torch.Tensor) -> float:
    error = cast(spelling).apply(x).double() - x.double()
    return -10 * math.log10(float(error.square().mean() / x.double().square().mean()))


@pytest.mark.parametrize(
    ("name", "decibels"),
    [("mxint8/ceil", 41.61), ("mxint6", 29.43), ("mxint4", 16.84), ("mxfp4/ceil", 18.76), ("nvfp4", 20.44),
     ("nvint4", 21.28)],
)  # fmt: skip
def test_noise_on_normal_numbers_is_what_the_paper_on_integers_and_floats_states(name, decibels):
    """ "INT v.s. FP" (arXiv 2510.25602), whose power-of-two scales are rounded up."""
    name, _, rule = name.partition("/")
    x = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    assert sqnr(str(cast(name)).replace("e8m0/", f"e8m0-{rule}/") if rule else name, x) == pytest.approx(
        decibels, abs=0.05
    )


@pytest.mark.parametrize("name", BFP)
def test_block_floating_point_is_pychops(name):
    bfp = pytest.importorskip("pychop.np.bfp_formats", exc_type=ImportError)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 128, generator=generator) * torch.exp2(torch.randint(-20, 20, (64, 1), generator=generator))
    expected = bfp.bfp_quantize(x.double().numpy(), name)
    assert not first_difference(cast(name).apply(x) + 0.0, np.asarray(expected) + 0.0, x)


def test_a_block_that_only_just_fits_keeps_its_scale():
    """127/128 is the largest value of bfp8 under exponent 0; a hair more needs exponent 1."""
    x = torch.zeros(1, 32)
    x[0, 0] = 127 / 128
    assert nc.quantize(x, "bfp8").scales.item() == 127
    x[0, 0] = 127 / 128 + 2.0**-20
    assert nc.quantize(x, "bfp8").scales.item() == 128


def test_dynamic_fixed_point_is_that_of_int16_training():
    """E = floor(log2 max) - 14, and the rest is int16: sheet "INT16 DFP", its worked example."""
    q = nc.quantize(torch.tensor([0.3, -1.7, 3.2, 5e-5]), "dfp16")
    assert q.scales.item() - 127 == -13
    assert (q.dequantize() * 2.0**13).tolist() == [2458, -13926, 26214, 0]
    top = nc.quantize(torch.tensor([4.0 - 2.0**-20, 1.0]), "dfp16").dequantize()
    assert top.tolist() == [32767 * 2.0**-13, 1.0]  # rounding would carry the maximum to 2**15: it saturates


def test_dynamic_fixed_point_noise_on_normal_numbers():
    """10 log10(12 * 2**24): a step of 2**-12, for a maximum in [4, 8)."""
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    assert 4 <= x.abs().max() < 8
    assert sqnr("dfp16", x) == pytest.approx(10 * math.log10(12 * 2**24), abs=0.02)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_integer_groups_are_round_to_nearest_under_a_float16_scale(group):
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(2)).numpy()
    tiles = x.reshape(8, -1, group)
    scale = (np.abs(tiles).max(-1, keepdims=True) / np.float32(7)).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(tiles * (1 / scale)), -7, 7) + 0.0  # integers have no -0
    q = nc.quantize(torch.from_numpy(x), f"int4-g{group}")
    assert not first_difference(q.dequantize(), (codes * scale).reshape(x.shape), x)
    assert q.nbytes == x.size // 2 + x.size // group * 2


def test_groups_of_32_and_four_bits_are_4_5_bits_an_element():
    bits = {name: cast(name).bits_per_element((128, 1024)) for name in PRESETS}
    assert bits["int4-g32"] == 4.5
    assert bits["int4-g128"] == 4.125
    assert bits["mxint6"] == 6.25
    assert bits["bfp16"] == 16.5
    assert bits["bfp2"] == 2.0625
