"""Accumulators against exact rational arithmetic and Python's integers, written to be read."""

import math
from fractions import Fraction

import pytest
import torch
from tests.witnesses import first_difference

from narrowcast.accumulate import Aligned, Chunked, Codes, Every, accumulator, add_shared, narrow_shared
from narrowcast.errors import CheckFailed, InputError
from narrowcast.formats import format, formats

ROUND = {"nearest-even": round, "toward-zero": int, "up": math.ceil}


def exponent(x: Fraction) -> int:
    """floor(log2(abs(x))), exactly."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if abs(x) >= Fraction(2) ** guess else guess - 1


def to_bits(x: Fraction, mantissa: int, lowest: int, mode: str = "nearest-even") -> Fraction:
    """Round to ``mantissa`` bits with exponents of at least ``lowest``: IEEE's definition without an upper end."""
    if x == 0:
        return x
    step = Fraction(2) ** (max(exponent(x), lowest) - mantissa)
    return ROUND[mode](x / step) * step


def in_format(name: str, mode: str = "nearest-even"):
    fmt = format(name)
    return lambda x: to_bits(x, fmt.mantissa, 1 - fmt.bias, mode)


def matrices(
    seed: int, m: int, n: int, k: int, name: str = "float16", spread: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal numbers times random powers of two, in format ``name``; one row of zeros, one cancelling pair."""
    g = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(r, k, generator=g) * 2.0 ** torch.randint(-spread, spread + 1, (r, k), generator=g) for r in (m, n)
    )
    a[0] = 0
    a[1, k // 2 : k // 2 * 2], b[1, k // 2 : k // 2 * 2] = a[1, : k // 2], -b[1, : k // 2]
    return format(name).round(a), format(name).round(b)


def every_pair(a: torch.Tensor, b: torch.Tensor, dot) -> torch.Tensor:
    """The matrix of ``dot`` over Fractions of the rows, as float64."""
    rows_a, rows_b = ([[Fraction(v) for v in row] for row in x.tolist()] for x in (a, b))
    return torch.tensor([[float(dot(x, y)) for y in rows_b] for x in rows_a], dtype=torch.float64)


def running(x, y, rounded, fused=True):
    total = Fraction(0)
    for p, q in zip(x, y, strict=True):
        total = rounded(total + (p * q if fused else rounded(p * q)))
    return total


def exact(x, y):
    return sum((p * q for p, q in zip(x, y, strict=True)), Fraction(0))


def agrees(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return not first_difference(found.flatten(), expected.flatten(), expected.flatten())


# --- running sums ---


@pytest.mark.parametrize("name", ["bfloat16", "float16", "e5m2", "float32", "tf32"])
@pytest.mark.parametrize("options", ["", "+toward-zero", "+up", "+unfused"])
def test_a_running_sum_rounds_once_a_step(name, options):
    a, b = matrices(1, 4, 3, 50, name="bfloat16" if name == "float32" else "float16", spread=4 if name != "e5m2" else 1)
    mode = options[1:] if options[1:] in ROUND else "nearest-even"
    expected = every_pair(a, b, lambda x, y: running(x, y, in_format(name, mode), options != "+unfused"))
    assert agrees(accumulator(f"{name}-sequential{options}").matmul(a, b), expected)


def test_a_fused_float32_sum_of_float32_operands_has_one_rounding_a_step():
    """48-bit products added to a 24-bit sum: float64 alone would round twice."""
    a, b = matrices(2, 5, 4, 60, name="float32", spread=20)
    expected = every_pair(a, b, lambda x, y: running(x, y, in_format("float32")))
    assert agrees(accumulator("float32-sequential").matmul(a, b), expected)
    assert not torch.equal(accumulator("float32-sequential+unfused").matmul(a, b).double(), expected)


def test_order_decides_in_bfloat16():
    """Sheet 54: 256 + 1 + 1 loses both ones from the left (the spacing at 256 is 2, ties go to even), none from the right."""
    ones = torch.ones(1, 3)
    for row, sum_ in (([256.0, 1, 1], 256), ([1.0, 1, 256], 258)):
        assert accumulator("bf16-sequential").matmul(torch.tensor([row]), ones).item() == sum_


def chunk_sums(x, y, size, inner, outer):
    return [outer(inner(x[i : i + size], y[i : i + size])) for i in range(0, len(x), size)]


def added_in_turn(parts, outer):
    total = Fraction(0)
    for part in parts:
        total = outer(total + part)
    return total


def added_as_tree(parts, outer):
    """Halve a list padded to a power of two; what is missing adds nothing."""
    if len(parts) == 1:
        return parts[0]
    half = 1 << (len(parts) - 1).bit_length() - 1
    return outer(added_as_tree(parts[:half], outer) + added_as_tree(parts[half:], outer))


@pytest.mark.parametrize(
    ("spelling", "size", "add"),
    [
        ("fp16-sequential/every8/bf16", 8, added_in_turn), ("fp16-sequential/split4/bf16", 13, added_in_turn),
        ("fp16-sequential/tree4/bf16", 4, added_as_tree), ("fp16-sequential/tree7/bf16", 7, added_as_tree),
        ("fp16-sequential/every64/bf16", 64, added_in_turn),
    ],
)  # fmt: skip
def test_chunks_are_added_in_the_order_named(spelling, size, add):
    a, b = matrices(3, 4, 3, 50)
    half, brain = in_format("float16"), in_format("bfloat16")
    expected = every_pair(
        a, b, lambda x, y: add(chunk_sums(x, y, size, lambda p, q: running(p, q, half), brain), brain)
    )
    assert agrees(accumulator(spelling).matmul(a, b), expected)


def test_a_tree_does_not_depend_on_how_many_devices_share_it():
    """Sheet 54: 1, 2 or 4 devices each sum a contiguous share as a tree, and a tree adds the shares: the same bits."""
    a, b = matrices(4, 8, 8, 256, name="bfloat16")
    tree = accumulator("bf16-sequential/tree16/bf16")
    whole = tree.matmul(a, b)
    plus = accumulator("bf16-sequential/tree1/bf16")
    for devices in (2, 4):
        shares = [tree.matmul(p, q) for p, q in zip(a.chunk(devices, -1), b.chunk(devices, -1), strict=True)]
        together = plus.matmul(torch.stack(shares, -1).reshape(64, devices), torch.ones(1, devices))
        assert torch.equal(together.view(8, 8), whole)
    split = accumulator("bf16-sequential/split2/bf16").matmul(a, b)
    assert not torch.equal(split, accumulator("bf16-sequential/split4/bf16").matmul(a, b))


def test_the_library_sum_is_torchs_own():
    a, b = matrices(5, 7, 6, 100)
    assert torch.equal(accumulator("fp32").matmul(a, b), a @ b.T)
    assert accumulator("fp32").matmul(a.double(), b.double()).dtype == torch.float64


# --- tensor cores ---


def tensor_core(x, y, core: Aligned, lowest: int):
    """One output of `Aligned`, from its docstring."""
    total = Fraction(0)
    for at in range(0, len(x), core.group):
        pairs = [(p, q) for p, q in zip(x[at : at + core.group], y[at : at + core.group], strict=True) if p * q]
        of_product = (lambda p, q: exponent(p * q)) if core.normalised else (
            lambda p, q: max(exponent(p), lowest) + max(exponent(q), lowest)
        )  # fmt: skip
        exponents = [of_product(p, q) for p, q in pairs] + ([exponent(total)] if total and core.joins else [])
        if not exponents:
            continue
        step = Fraction(2) ** (max(exponents) - core.fraction)
        fixed = sum(int(p * q / step) * step for p, q in pairs)
        total = fixed + (int(total / step) * step if core.joins else total)
        total = to_bits(total, core.register, -300, "toward-zero")
    return total


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize(
    "spelling", ["hopper-fp8", "aligned-16-13-13+late", "aligned-4-9-11+normalised", "hopper-fp16"]
)
def test_a_tensor_core_aligns_and_cuts(name, spelling):
    core, fmt = accumulator(spelling), format(name)
    a, b = matrices(6, 4, 3, 75, name=name, spread=6)
    lowest = 1 - fmt.bias
    expected = every_pair(a, b, lambda x, y: tensor_core(x, y, core, lowest))
    assert agrees(core.matmul(*(Codes(x, None, fmt.smallest_normal) for x in (a, b))), expected)


def test_enough_fraction_bits_make_a_float32_sum():
    """Sheet 29: 24 bits equal float32 to rounding; Hopper's 13 do not."""
    a, b = matrices(7, 8, 8, 512, name="e4m3fn")
    truth = a.double() @ b.double().T
    error = {s: (accumulator(s).matmul(a, b) - truth).abs().max().item() for s in ("aligned-32-24-23", "hopper-fp8")}
    assert error["aligned-32-24-23"] < truth.abs().max() * 2**-20 < error["hopper-fp8"]


def test_promotion_keeps_the_error_from_growing():
    """Sheet 11: without promotion the error grows with K; with promotion every 128 it is ten times lower at 16384."""
    g = torch.Generator().manual_seed(8)
    error = {}
    for k in (1024, 16384):
        a, b = (format("e4m3fn").round(torch.rand(8, k, generator=g)) for _ in range(2))
        truth = a.double() @ b.double().T
        for spelling in ("hopper-fp8", "hopper-fp8/every128/fp32"):
            error[k, spelling] = ((accumulator(spelling).matmul(a, b) - truth) / truth).abs().max().item()
    assert error[16384, "hopper-fp8"] > 4 * error[1024, "hopper-fp8"]
    assert error[16384, "hopper-fp8/every128/fp32"] < min(2 * error[1024, "hopper-fp8/every128/fp32"], 2e-3)
    assert error[16384, "hopper-fp8"] > 10 * error[16384, "hopper-fp8/every128/fp32"]


def test_scales_are_put_back_between_chunks_and_refused_within_one():
    a, b = matrices(9, 4, 3, 64, name="e4m3fn")
    sa, sb = (torch.rand(r, 2, generator=torch.Generator().manual_seed(r)).repeat_interleave(32, -1) for r in (4, 3))
    ca, cb = Codes(a, sa), Codes(b, sb)
    core, single = accumulator("hopper-fp8"), in_format("float32")

    def promoted(x, y, s, t):
        total = Fraction(0)
        for at in (0, 32):
            part = tensor_core(x[at : at + 32], y[at : at + 32], core, -400)
            total = single(total + part * single(s[at] * t[at]))
        return total

    found = accumulator("hopper-fp8/every32/fp32").matmul(ca, cb)
    rows = [[[Fraction(v) for v in row] for row in t.tolist()] for t in (a, b, sa, sb)]
    expected = [
        [float(promoted(x, y, s, t)) for y, t in zip(rows[1], rows[3], strict=True)]
        for x, s in zip(rows[0], rows[2], strict=True)
    ]
    assert agrees(found, torch.tensor(expected, dtype=torch.float64))
    for spelling in ("hopper-fp8", "hopper-fp8/every64/fp32", "int32-wrap"):
        with pytest.raises(InputError, match="changes within one sum"):
            accumulator(spelling).matmul(Codes(a.round(), sa), Codes(b.round(), sb))


# --- integers ---


def wrapped(total: int, width: int) -> int:
    return (total + (1 << width - 1)) % (1 << width) - (1 << width - 1)


def clamped(x, y, width):
    total, high = 0, (1 << width - 1) - 1
    for p, q in zip(x, y, strict=True):
        total = min(max(total + int(p * q), -high - 1), high)
    return total


@pytest.mark.parametrize("width", [32, 20])
def test_integers_wrap_or_saturate_at_their_width(width):
    g = torch.Generator().manual_seed(10)
    top = 32767 if width == 32 else 511
    a, b = (torch.randint(-top, top + 1, (6, 40), generator=g).float() for _ in range(2))
    a[0], b[0], b[1] = top, top, -top
    wrap = every_pair(a, b, lambda x, y: wrapped(int(exact(x, y)), width))
    assert agrees(accumulator(f"int{width}-wrap").matmul(a, b), wrap)
    saturate = every_pair(a, b, lambda x, y: clamped(x, y, width))
    assert agrees(accumulator(f"int{width}-saturate").matmul(a, b), saturate)
    assert not torch.equal(wrap, saturate)


def test_two_full_products_fit_int32_and_three_do_not():
    """Sheet 51: 2 * 32767**2 = 2147352578 < 2**31; with one bit given up on each side, chains of eight fit."""
    row = torch.full((1, 3), 32767.0)
    raising = accumulator("int32-raise")
    assert raising.matmul(row[:, :2], row[:, :2]).item() == 2147352578
    with pytest.raises(CheckFailed, match=r"1 of 1 sums of 3 products leave 32 bits, the first at \[0, 0\]"):
        raising.matmul(row, row)
    assert raising.matmul(torch.full((1, 8), 16383.0), torch.full((1, 8), 16383.0)).item() == 2147221512
    assert accumulator("int32-wrap").matmul(row, row).item() == 3 * 32767**2 - 2**32
    chained = accumulator("int32-wrap/every2/fp32").matmul(row, row).item()
    single = in_format("float32")
    assert chained == float(single(single(Fraction(2147352578)) + single(Fraction(32767**2))))


def test_a_sum_may_leave_and_come_back():
    a, b = torch.tensor([[32767.0] * 3 + [-32767.0] * 2]), torch.full((1, 5), 32767.0)
    assert accumulator("int32-raise").leaves(a, b).item()
    assert accumulator("int32-wrap").matmul(a, b).item() == 32767**2
    assert accumulator("int32-saturate").matmul(a, b).item() == 2**31 - 1 - 2 * 32767**2


def test_shared_exponent_down_conversion():
    """Sheet 51's goldens: shift = max(0, 17 - leading zeros of the largest)."""
    for largest, value, shift in ((2**30, 2**14, 16), (32767, 32767, 0), (32768, 16384, 1), (0, 0, 0)):
        integers, found = narrow_shared(torch.tensor([largest, -largest]))
        assert (integers.tolist(), found) == ([value, -value], shift)
    integers, shift = narrow_shared(torch.tensor([98303, 5, -5, -6, 6]))
    assert (integers.tolist(), shift) == (
        [24576, 1, -1, -1, 2],
        2,
    )  # half is added, then floor: -1.25 -> -1, -1.5 -> -1
    integers, shift = narrow_shared(torch.tensor([65535]))
    assert (integers.tolist(), shift) == ([32767], 1)  # rounds up to 2**15: stays at the largest


def test_adding_shared_exponents():
    integers, e = add_shared((torch.tensor([32767, -3]), -13), (torch.tensor([100, 7]), -15))
    assert (integers.tolist(), e) == ([16396, -1], -12)  # (32767 + 25, -3 + 1) / 2, half up


# --- exact ---


@pytest.mark.parametrize(("name", "spread"), [("e4m3fn", 3), ("float16", 6), ("float32", 2), ("float32", 60)])
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_an_exact_sum_is_rounded_once(name, spread, out):
    a, b = matrices(11, 5, 4, 40, name=name, spread=spread)
    total = accumulator("exact").matmul(a, b)
    expected = every_pair(a, b, lambda x, y: in_format(out)(exact(x, y)))
    assert agrees(format(out).round(total), expected)


def test_an_exact_sum_sees_what_every_other_order_loses():
    row = torch.tensor([[2.0**60, 2.0**-60, -(2.0**60), 2.0**-85]])
    assert accumulator("exact").matmul(row, torch.ones(1, 4)).item() == 2.0**-60 + 2.0**-85
    assert accumulator("float32-sequential").matmul(row, torch.ones(1, 4)).item() == 2.0**-85


# --- what every one of them promises ---

SPELLINGS = [
    "fp32", "exact", "bfloat16-sequential", "float16-sequential+toward-zero", "float32-sequential+unfused", "hopper-fp8",
    "hopper-fp16", "aligned-8-20-16+normalised+late", "int32-wrap", "int48-saturate", "int32-raise",
    "hopper-fp8/every128/float32", "fp32/split4/bfloat16", "int32-wrap/every2/float32", "exact/tree8/float16+toward-zero",
]  # fmt: skip
every = pytest.mark.parametrize("spelling", SPELLINGS)


@every
def test_its_spelling_reads_back(spelling):
    assert str(accumulator(spelling)) == spelling
    assert accumulator(str(accumulator(spelling))) == accumulator(spelling)


@every
def test_small_integers_come_out_exactly(spelling):
    """Every accumulator is exact where nothing has to be rounded: leading dimensions, odd K, one row."""
    g = torch.Generator().manual_seed(12)
    a, b = (torch.randint(-2, 3, (2, r, 19), generator=g).float() for r in (3, 4))
    found = accumulator(spelling).matmul(a, b)
    assert torch.equal(found.float(), a @ b.mT)
    assert found.dtype in (torch.float32, torch.float64)


@every
def test_nothing_to_add_is_zero(spelling):
    for shape in ((3, 0, 4), (0, 5, 4), (3, 5, 0)):
        m, k, n = shape
        assert torch.equal(
            accumulator(spelling).matmul(torch.ones(m, k), torch.ones(n, k)).float(), torch.full((m, n), float(k))
        )


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if not s.startswith("int") and "tree" not in s])
def test_infinity_and_nan_stay_visible(spelling):
    a = torch.tensor([[1.0, torch.inf], [torch.nan, 1.0], [1.0, 1.0]])
    found = accumulator(spelling).matmul(a, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    limit = torch.inf if "toward-zero" not in spelling else format("float16").max
    assert found[0, 0] >= limit and found[0, 1].isnan() and found[1].isnan().all() and found[2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("bf16", "a running sum in a format is spelled e.g. bf16-sequential"), ("bf17-sequential", "unknown format"),
        ("bf16-sequential+stochastic", "rounds deterministically"), ("bf16-sequential+up+down", "two roundings"),
        ("hopper-fp8/every0/fp32", "unknown order"), ("fp32/split4", "found 2 parts"), ("int32-clip", "unknown overflow"),
        ("int4-wrap", "8 to 48 bits"), ("aligned-0-13-13", "group of at least 1"), ("aligned-8-13-13+x", "unknown option"),
        ("fp32/every4/bf16+unfused", "drop '\\+unfused'"),
    ],
)  # fmt: skip
def test_bad_spellings_are_one_clear_line(spelling, message):
    with pytest.raises(InputError, match=message) as error:
        accumulator(spelling)
    assert "\n" not in str(error.value)


def test_chunks_of_chunks_and_odd_operands_are_refused():
    tiles = accumulator("fp32/every4/bf16")
    assert isinstance(tiles, Chunked)
    with pytest.raises(InputError, match="chunks of chunks"):
        Chunked(tiles, Every(8), tiles.outer)
    with pytest.raises(InputError, match=r"adds integers; found 0\.5"):
        accumulator("int32-wrap").matmul(torch.tensor([[0.5]]), torch.ones(1, 1))
    with pytest.raises(InputError, match="wider float64"):
        accumulator("bf16-sequential").matmul(torch.tensor([[0.1]], dtype=torch.float64), torch.ones(1, 1))


def test_any_format_can_hold_the_sum():
    a, b = torch.tensor([[0.3, 0.6]]), torch.tensor([[1.0, 1.0]])
    for fmt in formats().values():
        if fmt.name != "e8m0":  # it has no zero to start from
            step = fmt.round(a[:, :1].double()).double()
            assert accumulator(f"{fmt}-sequential").matmul(a, b).item() == fmt.round(step + a[:, 1:].double()).item()
