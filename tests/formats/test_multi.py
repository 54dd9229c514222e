"""Numbers in parts, against exact rational arithmetic and the worked numbers of the Collage sheet."""

import itertools
from fractions import Fraction

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.formats import format as format_
from narrowcast.formats.multi import Multi, fast_two_sum, grow, multi, multiply, two_prod, two_sum

BF16 = format_("bfloat16")
NARROW = ["e4m3", "e3m2fn", "e2m3fn", "e5m2", "binary8p4se"]
PRECISE = ["bfloat16", "float16", "float32", "tf32"]


def exactly(*tensors: torch.Tensor) -> list[Fraction]:
    """Sums over the tensors, element by element."""
    return [sum(map(Fraction, row)) for row in zip(*(t.double().tolist() for t in tensors), strict=True)]


def same_sums(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...], name: str) -> bool:
    """Whether two sums agree exactly; the values of narrow formats span fewer than 53 bits, so float64 is exact."""
    if name in NARROW:
        return torch.equal(*(sum(t.double() for t in side) for side in (left, right)))
    return exactly(*left) == exactly(*right)


def every_pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of values whose sum stays in the range."""
    values = format_(name).values().float()
    a, b = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    inside = (a.double() + b.double()).abs() <= format_(name).max
    return a[inside], b[inside]


def random_pairs(name: str, spread: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5_000, generator=generator)
    return tuple(format_(name).round(x * torch.exp2(torch.randint(-spread, spread, x.shape, generator=generator))))


@pytest.mark.parametrize("name", [*NARROW, *PRECISE])
def test_two_sum_is_exact(name):
    fmt = format_(name)
    a, b = every_pair(name) if name in NARROW else random_pairs(name)
    s, e = two_sum(a, b, fmt)
    assert torch.equal(s, fmt.round(a.double() + b.double()))
    assert same_sums((s, e), (a, b), name)


@pytest.mark.parametrize("name", [*NARROW, *PRECISE])
def test_fast_two_sum_is_exact_where_the_first_is_larger(name):
    a, b = every_pair(name) if name in NARROW else random_pairs(name)
    larger = (a.abs() >= b.abs()) | (a == 0)
    s, e = fast_two_sum(a[larger], b[larger], format_(name))
    assert same_sums((s, e), (a[larger], b[larger]), name)


def test_fast_two_sum_is_not_exact_elsewhere():
    a, b = torch.tensor([1.0078125]), torch.tensor([255.0])
    s, e = fast_two_sum(a, b, BF16)
    assert exactly(s, e) != exactly(a, b)
    assert exactly(*two_sum(a, b, BF16)) == exactly(a, b)


@pytest.mark.parametrize("name", PRECISE)
def test_two_prod_is_exact(name):
    fmt = format_(name)
    a, b = random_pairs(name, spread=3)
    above = (a * b).abs() >= fmt.smallest * 4.0 ** (fmt.precision + 1)  # elsewhere the error itself may underflow
    p, e = two_prod(a, b, fmt)
    assert ((p.double() + e.double() - a.double() * b.double()).abs() <= fmt.smallest / 2).all()
    a, b, p, e = (t[above] for t in (a, b, p, e))
    assert len(a) > 1000
    products = [Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert exactly(p, e) == products


@pytest.mark.parametrize(
    ("name", "parts", "bits"),
    [("bfloat16", 2, 17), ("bfloat16", 3, 26), ("float16", 2, 23), ("e5m2", 2, 7), ("e4m3", 2, 9), ("tf32", 2, 23)],
)
def test_significant_bits_bound_the_error_and_are_reached(name, parts, bits):
    m = multi(name, parts)
    assert m.significant_bits == bits
    assert m.bits == parts * m.format.bits
    bottom = m.format.smallest * 2.0 ** (bits + 1)  # nothing underflows from here on
    x = bottom * (1 + torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    relative = ((m.value(m.split(x)) - x).abs() / x).max()
    assert 2.0 ** -(bits + 0.2) < relative <= 2.0**-bits


def test_three_bfloat16_hold_every_float32_far_from_underflow():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, generator=generator) * torch.exp2(torch.randint(-90, 90, (100_000,), generator=generator))
    m = multi("bfloat16", 3)
    parts = m.split(x)
    assert torch.equal(m.value(parts), x.double())
    for part, following in itertools.pairwise(parts):
        assert torch.equal(BF16.round(part), part)
        assert (following.abs().double() <= part.abs().double() * 2.0**-8).all()


def test_the_first_part_decides_beyond_the_range_and_for_nan():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e6, -1e6])
    for name, first in (
        ("float16", [torch.inf, -torch.inf, torch.inf, -torch.inf]),
        ("e4m3fn", [448, -448, 448, -448]),
    ):
        high, low = multi(name).split(x)
        assert high[[0, 1, 3, 4]].tolist() == first
        assert high[2].isnan()
        assert not low.any()


def test_float64_and_16_bit_sources_are_split_from_their_own_precision():
    x = torch.tensor([1 + 2.0**-8 + 2.0**-30], dtype=torch.float64)
    assert [p.item() for p in multi("bfloat16").split(x)] == [1 + 2.0**-7, -(2.0**-8)]
    assert [p.item() for p in multi("bfloat16").split(x.float())] == [1, 2.0**-8]  # a tie, which float64 saw was none
    assert [p.item() for p in multi("e5m2").split(torch.tensor([1.1875], dtype=torch.float16))] == [1.25, -0.0625]


def test_grow_keeps_what_a_bfloat16_update_loses():
    """Eight updates of a tenth to 200 (Collage sheet): plain bfloat16 never moves, the pair is exact."""
    u = BF16.round(torch.tensor([0.1]))
    pair, plain = (torch.tensor([200.0]), torch.zeros(1)), torch.tensor([200.0])
    seen = []
    for _ in range(8):
        pair, plain = grow(pair, u, BF16), BF16.round(plain + u)
        seen.append((pair[0].item(), pair[1].item()))
    assert plain == 200
    assert seen == [
        (200, 0.10009765625), (200, 0.2001953125), (200, 0.30078125), (200, 0.400390625), (200, 0.5),
        (201, -0.3984375), (201, -0.298828125), (201, -0.19921875),
    ]  # fmt: skip
    assert sum(seen[-1]) == 200.80078125


def test_growing_from_zero_needs_the_sum_without_a_condition():
    """|x| >= |d| does not hold for a parameter that starts at zero and is small."""
    x, d = (torch.tensor([1.0078125]), torch.zeros(1)), torch.tensor([255.0])
    assert exactly(*grow(x, d, BF16)) == [Fraction(256.0078125)]
    assert exactly(*grow(x, d, BF16, total=fast_two_sum)) != [Fraction(256.0078125)]


def split_scalar(beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    return multi("bfloat16").split(torch.tensor([beta], dtype=torch.float64))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("beta", "high", "low", "ratio"),
    [(0.95, 0.94921875, 0.000782012939453125, 0.94999529), (0.98, 0.98046875, -0.000469207763671875, 0.97999812),
     (0.999, 1.0, -0.00099945068359375, 0.99899991)],
)  # fmt: skip
def test_a_decay_in_two_parts(beta, high, low, ratio):
    """One decay of 1.3: the ratios of the Collage sheet; the paper's released kernel gives 0.856 for 0.95."""
    b = split_scalar(beta)
    assert (b[0].item(), b[1].item()) == (high, low)
    start = multi("bfloat16").split(torch.tensor([1.3], dtype=torch.float64))
    hi, lo = multiply((start[0], torch.zeros(1)), b, BF16)
    assert (hi.double() + lo.double()).item() / start[0].item() == pytest.approx(ratio, abs=5e-9)


def test_a_moving_average_in_two_parts_follows_the_exact_one_and_bfloat16_does_not():
    """2000 steps at 0.999: in bfloat16 the second moment never decays, as a pair it is within a part in a thousand."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.rand(2000, generator=generator)
    b, gain = split_scalar(0.999), BF16.round(torch.tensor([0.001]))
    pair, plain, exact = (BF16.round(torch.tensor([1.3])), torch.zeros(1)), BF16.round(torch.tensor([1.3])), 1.296875
    for square in squares:
        term = BF16.round(gain * BF16.round(square))
        pair = grow(multiply(pair, b, BF16), term, BF16)
        plain = BF16.round(BF16.round(plain * b[0]) + term)
        exact = 0.999 * exact + 0.001 * square.item()
    assert plain == 1.296875
    assert (pair[0].double() + pair[1].double()).item() == pytest.approx(exact, rel=2e-3)


def test_the_high_part_is_always_the_rounded_sum():
    generator = torch.Generator().manual_seed(3)
    pair = (BF16.round(torch.randn(4096, generator=generator)), torch.zeros(4096))
    for _ in range(50):
        pair = grow(pair, BF16.round(0.01 * torch.randn(4096, generator=generator)), BF16)
        assert torch.equal(BF16.round(pair[0].double() + pair[1].double()), pair[0])


@pytest.mark.parametrize(
    ("fmt", "parts", "said"),
    [("bfloat16", 1, "2 to 4 parts, found 1"), ("bfloat16", 5, "2 to 4 parts, found 5"), ("int8", 2, "found int8"),
     ("ue4m3", 2, "found ue4m3"), ("e4m3_ftz", 2, "found e4m3_ftz"), ("bf17", 2, "unknown format 'bf17'")],
)  # fmt: skip
def test_what_cannot_be_a_part(fmt, parts, said):
    with pytest.raises(InputError, match=said):
        multi(fmt, parts)


def test_it_prints_its_parts():
    assert str(multi("bf16", 3)) == "bfloat16x3"
    assert multi(BF16) == Multi(BF16, 2)
