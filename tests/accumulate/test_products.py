"""L-Mul: one integer addition against the decoded form, over all pairs of 8-bit numbers; matrices; edges."""

import math
from fractions import Fraction

import pytest
import torch

from narrowcast.accumulate import TIMES, accumulator, product
from narrowcast.errors import InputError
from narrowcast.formats import format

INF, NAN = math.inf, math.nan


def parts(x: float) -> tuple[Fraction, int]:
    """(xm, xe) with abs(x) = (1 + xm) 2**xe."""
    significand, exponent = math.frexp(abs(x))
    return Fraction(significand) * 2 - 1, exponent - 1


def lmul(x: float, y: float, mantissa: int, carry: bool = True) -> float:
    """The paper's product decoded: operands cut to ``mantissa`` bits, then 1 + xm + ym + 2**-l, carried or not."""
    if x == 0 or y == 0:
        return math.copysign(1, x) * math.copysign(1, y) * 0.0
    (xm, xe), (ym, ye) = parts(x), parts(y)
    cut = Fraction(1, 2**mantissa)
    l = {1: 1, 2: 2, 3: 3, 4: 3}.get(mantissa, 4)  # noqa: E741 - the paper's name
    f = xm // cut * cut + ym // cut * cut + Fraction(1, 2**l)
    over = math.floor(f) if carry else 0
    value = (1 + f - over) * Fraction(2) ** (xe + ye + over)
    return math.copysign(float(value), x) * math.copysign(1, y)


def tensor_lmul(x: torch.Tensor, y: torch.Tensor, *how) -> torch.Tensor:
    return torch.tensor([[lmul(p, q, *how) for q in y.tolist()] for p in x.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize("how", ["lmul2", "lmul3", "lmul3+formula"])
def test_one_addition_equals_the_decoded_form_for_all_pairs(name, how):
    values = format(name).decode(torch.arange(128))
    values = values[values.isfinite()]
    found = product(how)(values[:, None], -values[None, :])
    expected = tensor_lmul(values, -values, int(how[4]), "formula" not in how)
    assert torch.equal(found.view(torch.int64), expected.view(torch.int64))


@pytest.mark.parametrize("mantissa", [1, 4, 5, 10, 23])
def test_any_width_equals_the_decoded_form(mantissa):
    g = torch.Generator().manual_seed(mantissa)
    x, y = (torch.randn(40, generator=g) * 2.0 ** torch.randint(-30, 30, (40,), generator=g) for _ in range(2))
    assert torch.equal(product(f"lmul{mantissa}")(x[:, None], y[None]), tensor_lmul(x, y, mantissa))


@pytest.mark.parametrize(
    ("how", "x", "y", "value"),
    [
        ("lmul3", 1.25, 1.25, 1.625), ("lmul3", 1.75, 1.75, 3.25), ("lmul4", 3.0, -0.75, -2.25), ("lmul3", 1.0, 1.0, 1.125),
        ("lmul3", 1.5, 1.5, 2.25), ("lmul3+formula", 1.5, 1.5, 2.125),
        # edges: zeros, subnormals as zero, overflow to the largest float32, infinities and NaN as ever
        ("lmul3", 0.0, -3.0, -0.0), ("lmul3", 1e-40, 3.0, 0.0), ("lmul3", 1e-30, 1e-30, 0.0), ("lmul3", 1e30, -1e30, -3.4028234663852886e38),
        ("lmul3", INF, -2.0, -INF), ("lmul3", INF, 0.0, NAN), ("lmul3", NAN, 0.0, NAN), ("lmul3", -INF, 2e-38, -INF), ("lmul3", INF, 1e-38, NAN),
        ("lmul3+formula", 1e30, 1e30, 3.4028234663852886e38), ("lmul3+formula", 1e-30, 1e-30, 0.0), ("lmul3+nearest-even", 1.99, 1.0, 2.25),
    ],
)  # fmt: skip
def test_worked_products_and_edges(how, x, y, value):
    found = product(how)(torch.tensor([x]), torch.tensor([y])).item()
    assert (math.isnan(found) and math.isnan(value)) or (found, math.copysign(1, found)) == (
        value,
        math.copysign(1, value),
    )
    assert product(how)(torch.tensor([y]), torch.tensor([x])).item() == found or math.isnan(found)


@pytest.mark.parametrize("how", ["lmul3", "lmul4", "lmul23", "lmul3+formula", "lmul4+nearest-even"])
@pytest.mark.parametrize("edges", [False, True])
def test_a_matrix_product_sums_the_products(how, edges):
    """Operands of three bits and few binades: every float32 sum is exact, so order does not matter."""
    g = torch.Generator().manual_seed(1)
    a, b = ((torch.randint(4, 8, (2, r, 21), generator=g) - 5.5) * 2 for r in (5, 7))
    if edges:
        a[0, 1, 2] = b[1, 3, 4] = 0.0
        a[1, 1], b[0, 0] = a[1, 1] * 2.0**-120, b[0, 0] * 2.0**-30  # products below float32's normals count as zero
    multiply = product(how)
    expected = multiply(a[..., :, None, :], b[..., None, :, :]).sum(-1)
    assert torch.equal(multiply.matmul(a, b), expected.float())
    assert torch.equal(accumulator("fp32").matmul(a, b, multiply), multiply.matmul(a, b))
    assert torch.equal(accumulator("float32-sequential").matmul(a, b, multiply), expected.float())


def test_infinities_pass_through_a_matrix_product():
    a, b = torch.tensor([[INF, 1.0], [2.0, NAN]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = product("lmul4").matmul(a, b)
    assert found[0].tolist()[0] == INF and found[0, 1].isnan() and found[1].isnan().all()


def test_large_matrices_are_cut_into_blocks():
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(33, 700, generator=g), torch.randn(900, 700, generator=g)
    whole, multiply = product("lmul4").matmul(a, b), product("lmul4")
    for row in (0, 32):
        assert torch.allclose(whole[row].double(), multiply(a[row], b).sum(-1), rtol=0, atol=700 * 2.0**-22)


@pytest.mark.parametrize("spelling", ["times", "lmul1", "lmul23", "lmul3+formula", "lmul4+nearest-even+formula"])
def test_its_spelling_reads_back(spelling):
    assert str(product(spelling)) == spelling
    assert product(product(spelling)) == product(spelling)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [("mul", "unknown product"), ("lmul24", "1 to 23"), ("lmul0", "unknown product"), ("lmul3+stochastic", "deterministic"),
     ("lmul3+up+down", "at most one rounding"), ("lmul3+what", "unknown rounding")],
)  # fmt: skip
def test_bad_spellings_are_refused(spelling, message):
    with pytest.raises(InputError, match=message):
        product(spelling)


@pytest.mark.parametrize("spelling", ["exact", "hopper-fp8", "int32-wrap", "hopper-fp8/every8/fp32"])
def test_hardware_sums_take_ordinary_products_only(spelling):
    with pytest.raises(InputError, match="adds ordinary products only, found lmul3"):
        accumulator(spelling).accept(product("lmul3"))
    accumulator(spelling).accept(TIMES)
