"""Dynamic range expansion against its formula in float64."""

import math

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.formats import format
from narrowcast.storage import Expanded, storage
from narrowcast.storage.expansion import exp2, log2

E4M3 = Expanded(format("e4m3fn"))


def test_powers_are_what_they_say():
    x = torch.cat([torch.logspace(-37, 38, 20001), torch.tensor([1.0, 0.5, 2.0**-126])])
    assert (log2(x).double() - x.double().log2()).abs().max() < 2.2e-6 + 2**-17  # and float32's own step at 126
    near = torch.linspace(0.71, 1.41, 20001)
    assert (log2(near).double() - near.double().log2()).abs().max() < 2.3e-6
    t = torch.linspace(-126, 0, 200001)
    assert (exp2(t).double() / t.double().exp2() - 1).abs().max() < 3e-6
    assert log2(torch.ones(1)).item() == 0.0 and exp2(torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize(("ratio", "sixteenths"), [(1e3, 26), (10.0, 80), (100352.0, 16), (1.0, 255), (1e38, 2)])
def test_the_power_of_a_group(ratio, sixteenths):
    """Sheet values: R = 1e3 gives k = 26/16, R = 10 gives 5, R = 448**2 / 2 gives 1."""
    group = torch.full((128,), ratio).clamp_max(1e30)
    group[0] = group[0] / ratio
    assert int(E4M3.store(group)["powers"][0]) == sixteenths


def test_it_is_the_published_formula():
    """Codes and values in float64, with the published centre; codes may differ where the formula is at a tie."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 128, generator=g) * torch.exp2(torch.randn(400, 128, generator=g) * 2)
    x *= 10.0 ** torch.randint(-12, 3, (400, 1), generator=g)
    stored = E4M3.store(x.flatten())
    d = x.double()
    top, low = d.abs().amax(1, keepdim=True), d.abs().amin(1, keepdim=True)
    k = (math.log2(448**2 / 2) / (top / low).log2() * 16).floor() / 16
    assert torch.equal(stored["powers"].double() / 16, k.flatten())
    centre = (top * low).sqrt()
    scale = (top / centre) ** k / 448
    y = d.sign() * (d.abs() / centre) ** k / scale
    codes = format("e4m3fn").encode(y.flatten())
    assert (codes != stored["codes"]).sum() < 20  # of 51,200
    q = format("e4m3fn").decode(stored["codes"]).double().view(400, 128)
    expected = q.sign() * (q.abs() * scale) ** (1 / k) * centre
    assert torch.allclose(E4M3.load(stored, x.numel()).double(), expected.flatten(), rtol=1e-5, atol=0)


def test_errors_stay_below_the_bound_and_the_largest_is_exact():
    """k = 5; the bound is that of normal numbers: what is stretched below 2**-6 = 448 (1.28 / 10)**5 has fewer bits."""
    x = torch.linspace(1, 10, 128)
    back = E4M3.load(E4M3.store(x), 128)
    assert ((back - x) / x)[x > 1.3].abs().max() < (1 + 2**-4) ** (1 / 5) - 1 + 1e-5
    assert back[-1] == x[-1]


def test_edges():
    x = torch.zeros(4 * 128 + 3)
    x[128], x[130] = 3.0, -0.0  # one value among zeros: they do not count as the smallest
    x[256], x[300] = 1.0, math.nan
    x[384], x[385] = 1e-40, -1e-39  # below float32's normals: zero
    stored = E4M3.store(x)
    back = E4M3.load(stored, x.numel())
    assert stored["powers"][1] == 255 and back[128] == 3.0 and not back[:128].any() and back[130].signbit()
    assert back[256:384].isnan().all() and not back[384:].any()
    assert E4M3.bits_per_element(1280) == 8 + 40 / 128


@pytest.mark.parametrize(
    ("spelling", "what"),
    [
        ("e2m1fn/1x128+pad/expanded", "expected a signed 8-bit float"),
        ("e4m3fn/1x128/fp32", r"expected the tile 'tensor', or 1xN\+pad"),
        ("e4m3fn/1x128+pad/fp32/nearest-even/hadamard128", "has no transform"),
        ("bfloat17", "bfloat16x2"),
        ("e4m3fnx2", "expected parts of bfloat16 or float16"),
    ],
)
def test_what_cannot_be_kept(spelling, what):
    with pytest.raises(InputError, match=what):
        storage(spelling)


@pytest.mark.parametrize(
    "spelling",
    [
        "float32",
        "bfloat16",
        "float16/tensor/fp32",
        "bfloat16x2",
        "e5m2/1x64+pad/expanded",
        "int4/1x32+pad/fp32",
        "posit8_1",
    ],
)
def test_spelling_and_the_bytes_it_takes(spelling):
    kept = storage(spelling)
    assert storage(str(kept)) == kept
    x = torch.linspace(-3, 5, 200)
    stored = kept.store(x)
    back = kept.load(stored, 200)
    assert back.shape == (200,) and (back - x).abs().max() < 0.5
    assert torch.equal(kept.load(kept.zeros(200), 200), torch.zeros(200))
    assert kept.bits_per_element(200) * 200 / 8 <= sum(t.nbytes for t in stored.values()) + 0.5
