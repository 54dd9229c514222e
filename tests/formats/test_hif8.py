"""HiFloat8 against Huawei's `en_dtypes`, the table of its paper, and its hybrid rounding against the published rule."""

import itertools

import numpy as np
import pytest
import torch
from tests.witnesses import every_half, random_float32

import narrowcast as nc
from narrowcast.formats import rounding

HIF8, AWAY = nc.format("hif8"), rounding("nearest-away")
NORMAL = [  # first code, binades from there on, mantissa bits
    (0x08, [0], 3), (0x10, [1], 3), (0x18, [-1], 3), (0x20, [2, 3], 3), (0x30, [-2, -3], 3), (0x40, [4, 5, 6, 7], 2),
    (0x50, [-4, -5, -6, -7], 2), (0x60, range(8, 16), 1), (0x70, range(-8, -16, -1), 1),
]  # fmt: skip
ENCODED = [
    (1.0625, 0x09), (1.06, 0x08), (1.9375, 0x10), (15.5, 0x40), (15.4, 0x2F), (18, 0x41), (17.9, 0x40), (30, 0x44),
    (40959, 0x6E), (40960, 0x6F), (-40960, 0xEF), (1.5 * 2**-16, 0x7E), (1.4999 * 2**-16, 0x07), (2**-23, 0x01),
    (2**-24, 0x00), (1.5 * 2**-22, 0x02), (-0.0, 0x00), (torch.nan, 0x80), (torch.inf, 0x6F),
]  # fmt: skip


def test_the_paper_s_table():
    expected = [0.0, *(2.0 ** (m - 23) for m in range(1, 8))]
    for first, binades, bits in NORMAL:
        assert len(expected) == first
        expected += [2.0**e * (1 + m / 2**bits) for e, m in itertools.product(binades, range(2**bits))]
    expected[0x6F] = torch.inf
    positive = HIF8.decode(torch.arange(128))
    assert positive.tolist() == expected
    negative = HIF8.decode(torch.arange(129, 256))
    assert torch.equal(negative, -positive[1:])
    assert HIF8.decode(torch.tensor([0x80])).isnan().all()
    assert len(HIF8.values()) == 253


def test_the_saturating_one_differs_beyond_its_maximum_only():
    x = torch.tensor([33000.0, 40960.0, -1e9, torch.inf, -torch.inf, torch.nan, 100.0])
    assert nc.format("hif8_sat").encode(x, AWAY).tolist() == [0x6E, 0x6E, 0xEE, 0x6E, 0xEE, 0x80, 0x4A]
    assert torch.equal(nc.format("hif8_sat").decode(torch.tensor([0x6F, 0xEF])), torch.tensor([torch.inf, -torch.inf]))


@pytest.mark.parametrize(("x", "code"), ENCODED, ids=str)
def test_encoding_examples(x, code):
    assert HIF8.encode(torch.tensor([float(x)]), AWAY).tolist() == [code]


def test_overflow_leaves_by_the_mode_s_rule():
    x = torch.tensor([40000.0, 45000.0, -45000.0, 60000.0])
    assert HIF8.round(x, rounding("toward-zero")).tolist() == [32768.0, 32768.0, -32768.0, 32768.0]
    assert HIF8.round(x, rounding("up")).tolist() == [torch.inf, torch.inf, -32768.0, torch.inf]


def en_dtypes_codes(x: np.ndarray) -> np.ndarray:
    return x.astype(pytest.importorskip("en_dtypes").hifloat8).view(np.uint8)


def test_every_code_decodes_as_in_en_dtypes():
    dtype = pytest.importorskip("en_dtypes").hifloat8
    expected = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    assert np.array_equal(HIF8.decode(torch.arange(256)).numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_encodes_as_en_dtypes(kind):
    """Every 16-bit input, and a million of float32's patterns around HiFloat8's range."""
    if kind == "float32":
        x = random_float32(1 << 20, seed=5)
        x = torch.cat([x, torch.exp2(torch.linspace(-26, 18, 1 << 18)) * torch.linspace(-1, 1, 1 << 18).sign()])
    else:
        x = every_half()[kind]
    with np.errstate(all="ignore"):
        expected = en_dtypes_codes(x.numpy())
    found = HIF8.encode(x, AWAY).numpy()
    wrong = np.flatnonzero(found != expected)
    assert not wrong.size, (x[wrong[:4]], found[wrong[:4]], expected[wrong[:4]])


# --- hybrid rounding ---


def hybrid(x: float, strict: bool) -> float:
    """The published rule, bit by bit: F is what lies below the kept bits, T the last 14 bits of the float32."""
    bits = int(np.float32(x).view(np.uint32)) & 0x7FFFFFFF
    exponent, fraction, own = (bits >> 23) - 127, bits & 0x7FFFFF, bits & 0x3FFF
    if abs(exponent) < 4:
        return float(HIF8.round(torch.tensor([x]), AWAY))
    if exponent < -23:
        return 0.0
    width = 2 if abs(exponent) < 8 else 1 if abs(exponent) < 16 and exponent >= -15 else 0
    if exponent == -23:
        kept, below, step = 0, 1 << 13 | fraction >> 10, 2.0**-22
    else:
        kept, below = (1 << width) + (fraction >> (23 - width)), fraction >> (9 - width) & 0x3FFF
        step = 2.0 ** (exponent - width)
    value = (kept + (below > own if strict else below >= own)) * step
    return float(np.copysign(np.inf if value > 2.0**15 else value, x))


@pytest.mark.parametrize("strict", [True, False])
def test_hybrid_rounding_is_the_published_rule(strict):
    generator = torch.Generator().manual_seed(0)
    x = torch.exp2(torch.empty(4000).uniform_(-24.5, 15.9, generator=generator))
    x = torch.cat([x, -x, HIF8.values().float(), x.bfloat16().float()])
    x = x[x.abs() < 2.0**16]
    found = HIF8.round(x, rounding("hybrid" if strict else "hybrid-published"))
    assert found.abs().tolist() == [abs(hybrid(v, strict)) for v in x.tolist()]
    assert (found * x >= 0).all()


def test_hybrid_examples():
    x = torch.tensor([17.0, 18.0, 300.0, 16.001, 20.0, 3.1])
    assert HIF8.round(x, rounding("hybrid-published")).tolist() == [20, 20, 384, 16, 24, 3]
    assert HIF8.round(x, rounding("hybrid")).tolist() == [20, 20, 384, 16, 20, 3]


def test_hybrid_needs_no_seed_and_is_spelled_in_a_cast():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) * 50
    cast = nc.cast("hif8/tensor/one/hybrid")
    assert not cast.random and str(cast) == "hif8/tensor/one/hybrid"
    assert torch.equal(cast.apply(x), HIF8.round(x, rounding("hybrid")))
    assert torch.equal(nc.quantize(x, cast).dequantize(), cast.apply(x))
    for name in ("e4m3fn", "int8"):  # any format: up where the discarded bits exceed the last bits
        rounded = nc.round(x, name, "hybrid")
        low, high = nc.format(name).neighbours(x)
        assert ((rounded == low) | (rounded == high)).all()


def test_hybrid_dithers_float32_but_biases_what_was_bfloat16():
    """Its noise is the number's own last bits: there are none in a bfloat16. The sheet measured +2e-5 and +9.4 %."""
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(2)).mul_(50)
    x = x[x.abs() >= 16]
    for source, low, high in ((x, -1e-3, 1e-3), (x.bfloat16().float(), 0.08, 0.11)):
        bias = (HIF8.round(source, rounding("hybrid")) / source - 1).mean()
        assert low < bias < high
