"""Block Hadamard transforms: orthonormal, their own inverse, signs before the rotation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from narrowcast.errors import InputError
from narrowcast.formats import Stream
from narrowcast.transforms import Hadamard, transform

SIZES = [2, 4, 16, 32, 64, 128]
ALL = [Hadamard(n, signs) for n in SIZES for signs in ("none", "fixed", "fresh")]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_sylvesters_matrix(size):
    matrix = Hadamard(size).forward(torch.eye(size)) * math.sqrt(size)
    expected = torch.from_numpy(hadamard(size)).float()
    assert torch.allclose(matrix, expected, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("t", ALL, ids=str)
def test_rows_are_orthonormal(t):
    matrix = t.forward(torch.eye(t.size), Stream(3)).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(t.size, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("t", ALL, ids=str)
def test_inverse_undoes_forward(t):
    x = normal(3, 2 * t.size)
    back = t.inverse(t.forward(x, Stream(1)), Stream(1))
    assert torch.allclose(back, x, atol=2.0**-20)


@pytest.mark.parametrize("size", [4, 16, 64])
def test_small_integers_come_back_exactly(size):
    """1/sqrt(size) is a power of two and every sum fits: not one rounding happens."""
    x = torch.arange(-64, 64).float().view(2, 64)
    for signs in ("none", "fixed", "fresh"):
        t = Hadamard(size, signs)
        assert torch.equal(t.inverse(t.forward(x, Stream(5)), Stream(5)), x)


@pytest.mark.parametrize("t", ALL, ids=str)
def test_the_product_of_two_rotated_operands_is_the_product(t):
    a, b = normal(5, 128).double(), normal(7, 128, seed=1).double()
    rotated = t.forward(a.float(), Stream(2)).double() @ t.forward(b.float(), Stream(2)).double().T
    assert torch.allclose(rotated, a.float().double() @ b.float().double().T, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_signs_come_before_the_rotation(size):
    """Two seeds give different magnitudes; signs after the rotation would only change the signs."""
    t, x = Hadamard(size, "fresh"), normal(4, 128)
    one, two = t.forward(x, Stream(1)), t.forward(x, Stream(2))
    assert not torch.allclose(one.abs(), two.abs(), atol=1e-3)
    signs = t.forward(torch.eye(size), Stream(1))[:, 0] * math.sqrt(size)  # column 0 of diag(s) H is s
    expected = Hadamard(size).forward((x.view(-1, size) * signs.round()).view_as(x))
    assert torch.equal(one, expected)


def test_fixed_signs_are_transformer_engines_and_never_change():
    signs = Hadamard(16, "fixed").forward(torch.eye(16))[:, 0] * 4
    assert signs.tolist() == [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
    for size in SIZES:
        t, x = Hadamard(size, "fixed"), normal(2, 128)
        assert torch.equal(t.forward(x), t.forward(x, Stream(9)))


def test_an_outlier_is_spread_over_its_block_and_stays_in_it():
    x = torch.zeros(1, 96)
    x[0, 40] = 32.0
    y = Hadamard(32).forward(x)
    assert torch.allclose(y[0, 32:64].abs(), torch.full((32,), 32 / math.sqrt(32)))
    assert y[0, :32].abs().sum() == y[0, 64:].abs().sum() == 0


@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    blocks=st.integers(1, 4),
    size=st.sampled_from([2, 8, 16]),
    signs=st.sampled_from(["none", "fixed", "fresh"]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_strides(lead, blocks, size, signs):
    t, x = Hadamard(size, signs), normal(*lead, 3, blocks * size)
    whole = t.forward(x, Stream(4))
    assert whole.shape == x.shape
    rows = [t.forward(row, Stream(4)) for row in x.reshape(-1, blocks * size)]
    assert not rows or torch.equal(whole.reshape(-1, blocks * size), torch.stack(rows))
    strided = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(t.forward(strided, Stream(4)), whole)
    assert torch.equal(t.inverse(strided, Stream(4)), t.inverse(x, Stream(4)))


@pytest.mark.parametrize("size", [-2, 0, 1, 3, 24, 48])
def test_sizes_that_are_no_power_of_two_are_refused(size):
    with pytest.raises(InputError, match="power of two"):
        Hadamard(size)


def test_other_bad_input():
    with pytest.raises(InputError, match="expected one of none, fixed, fresh"):
        Hadamard(8, "random")
    with pytest.raises(InputError, match=r"does not divide the last axis of shape \(3, 20\)"):
        Hadamard(8).forward(torch.ones(3, 20))
    with pytest.raises(InputError, match="draws its signs"):
        Hadamard(8, "fresh").forward(torch.ones(3, 16))


@pytest.mark.parametrize("t", ALL, ids=str)
def test_spelling_round_trip(t):
    assert transform(str(t)) == t


@pytest.mark.parametrize(
    "text", ["", "hadamard", "hadamard12", "hadamard16-", "hadamard16-none", "rotation16", "hadamard1"]
)
def test_bad_spellings_are_refused(text):
    with pytest.raises(InputError):
        transform(text)
