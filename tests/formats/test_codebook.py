"""Codebooks: the tables of bitsandbytes, how one is built from samples, and errors that were computed elsewhere."""

import math

import pytest
import torch
from scipy.stats import norm

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.formats import Codebook, codebook, from_quantiles
from narrowcast.formats.codebook import normalised_float

#: mean squared error on N(0,1), blocks scaled by their largest magnitude (formats-reference, section 2; computed there)
ERRORS = {
    "nf4": {32: 0.00762, 64: 0.00844, 128: 0.00914, 1024: 0.01088},
    "af4": {32: 0.00821, 64: 0.00914, 128: 0.00991, 1024: 0.01179},
    "e2m1fn": {32: 0.01022, 64: 0.01116, 128: 0.01186, 1024: 0.01325},
    "int4_bnb": {32: 0.00941, 64: 0.01156, 128: 0.01376, 1024: 0.02038},
    "fp4_bnb": {32: 0.01303, 64: 0.01486, 128: 0.01654, 1024: 0.02140},
    "e3m0fn": {32: 0.0326, 64: 0.0354, 128: 0.0370, 1024: 0.0382},
}
#: where bitsandbytes' kernels part neighbours
CUTS = {
    "nf4": [-0.8480964, -0.6106329, -0.4599953, -0.3396794, -0.2346074, -0.1379117, -0.0455250, 0.0397901, 0.1202553,
            0.2035213, 0.2920138, 0.3893125, 0.5016634, 0.6427869, 0.8614784],
    "fp4_bnb": [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333],
}  # fmt: skip


@pytest.mark.parametrize("block", [32, 64, 128, 1024])
@pytest.mark.parametrize("name", ERRORS)
def test_error_on_the_normal_distribution(name, block):
    x = torch.randn(1 << 9, 1 << 11, generator=torch.Generator().manual_seed(0))
    error = (nc.cast(f"{name}/1x{block}/fp32").apply(x) - x).square().mean()
    assert error == pytest.approx(ERRORS[name][block], rel=0.02)


@pytest.mark.parametrize("name", CUTS)
def test_neighbours_are_parted_where_bitsandbytes_parts_them(name):
    fmt, cuts = nc.format(name), torch.tensor(CUTS[name])
    values = fmt.values()[-len(cuts) - 1 :].float()
    assert torch.equal(fmt.round(cuts - 1e-6), values[:-1])
    assert torch.equal(fmt.round(cuts + 1e-6), values[1:])


def test_nf4_is_built_from_quantiles_of_the_normal():
    offset = 1 - (1 / 32 + 1 / 30) / 2
    positive = norm.ppf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -norm.ppf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    built = torch.tensor(sorted([*negative, 0.0, *positive])) / max(positive)
    assert (nc.format("nf4").values() - built).abs().max() < 3e-7


def test_fp4_of_bitsandbytes_counts_its_exponent_downwards():
    fmt = nc.format("fp4_bnb")
    twelfths = [0, 0.0625, 8, 12, 4, 6, 2, 3]
    assert fmt.decode(torch.arange(8)).tolist() == pytest.approx([k / 12 for k in twelfths], rel=1e-7)
    assert torch.equal(fmt.decode(torch.arange(8, 16)), -fmt.decode(torch.arange(8)))
    for exponent in (1, 2, 3):  # the rule that gives the table: 2**(bias + 1 - exponent) * 1.mantissa, bias 3
        for mantissa in (0, 1):
            assert twelfths[2 * exponent + mantissa] == 2 ** (4 - exponent) * (1 + mantissa / 2)
    assert fmt.encode(torch.tensor([-1e-4, 1e-4])).tolist() == [8, 0]


def test_codes_of_the_tables_that_count_downwards():
    assert nc.format("int4_bnb").encode(torch.tensor([1.0, 0.0, -1.0, 1 / 7])).tolist() == [0, 7, 15, 6]
    assert nc.format("int4_bnb").decode(torch.tensor([8])).tolist() == [0.0]  # zero's second code
    assert nc.format("af4").encode(torch.tensor([1.0, 0.0, -1.0])).tolist() == [0, 8, 15]


def test_dynamic_map():
    """bitsandbytes' create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8), from its description."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        values += [*means.tolist(), *(-means).tolist()]
    fmt = nc.format("dynamic8")
    assert len(values) == len(fmt.table) == 256
    assert fmt.table == pytest.approx(sorted(values), rel=1e-7)
    assert len(nc.format("dynamic4").table) == 16


def test_quantiles_fill_their_values_evenly():
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    fmt = from_quantiles(x, 4)
    assert fmt.bits == 4 and 0.0 in fmt.table and max(map(abs, fmt.table)) == 1.0
    assert list(fmt.table) == sorted(fmt.table)
    i = torch.arange(1, 17, dtype=torch.float64)  # against the normal's own quantiles
    exact = torch.from_numpy(norm.ppf((i / 17).numpy()))
    middles = (exact[:-1] + exact[1:]) / 2
    expected = torch.cat([middles / middles.abs().max(), torch.zeros(1, dtype=torch.float64)]).sort().values
    assert (torch.tensor(fmt.table, dtype=torch.float64) - expected).abs().max() < 0.02
    share = torch.bincount(fmt.encode(x / x.abs().max() * 3).int().flatten(), minlength=16) / x.numel()
    assert share.min() > 0.005


@pytest.mark.parametrize("samples", [torch.zeros(9), torch.tensor([]), torch.tensor([1.0, torch.nan])], ids=str)
def test_quantiles_of_nothing_are_refused(samples):
    with pytest.raises(InputError, match="needs finite samples that are not all zero"):
        from_quantiles(samples, 4)


def test_a_table_of_ones_own_has_a_name_that_spells_it():
    fmt = codebook([-1.0, -0.3, 0.0, 0.3, 1.0])
    assert fmt.name == "table(-1,-0.3,0,0.3,1)"
    assert nc.format(fmt.name) == fmt and nc.format(from_quantiles(torch.arange(99.0), 3).name).bits == 3
    assert nc.cast(f"{fmt}/1x32/fp32").format == fmt
    x = torch.tensor([[-0.9, 0.1, 0.2, 0.7, 3.0]])
    assert nc.cast(f"{fmt}/row/one").apply(x).tolist() == [[-1.0, 0.0, pytest.approx(0.3), 1.0, 1.0]]


def test_codes_that_stand_for_nothing():
    fmt = Codebook("holes", (0.0, math.nan, 1.0, 1.0, -1.0))
    assert fmt.bits == 3 and fmt.nan_code == 1
    assert fmt.decode(torch.arange(8)).tolist() == pytest.approx([0, math.nan, 1, 1, -1] + [math.nan] * 3, nan_ok=True)
    assert fmt.encode(torch.tensor([0.9, torch.nan, -5.0])).tolist() == [2, 1, 4]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [((1.0,), "2 to 65536 values, found 1"), ((0.0, 1e40), "finite in float32"), ((1.0, 1.0), "two different values"),
     ((-1.0, -2.0), "one of them positive"), ((math.inf, 0.0), "finite in float32")],
)  # fmt: skip
def test_bad_tables_are_refused(table, complaint):
    with pytest.raises(InputError, match=complaint):
        Codebook("bad", table)


@pytest.mark.parametrize("name", ["table(1,x)", "table()", "dynamic9"])
def test_bad_spellings_are_refused(name):
    with pytest.raises(InputError, match=r"table\(-1,-0.3,0,0.3,1\)|3 to 8 bits"):
        nc.format(name)


def test_normalised_floats_are_the_published_tables():
    assert torch.equal(normalised_float(2, 1).values(), nc.format("fp4_bnb").values())
    eights = [0.0, *(2.0**-i for i in range(6, -1, -1))]
    assert normalised_float(3, 0).values().tolist() == [*(-v for v in eights[:0:-1]), *eights]
    assert normalised_float(2, 0).values().tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    with pytest.raises(InputError, match="normalised float"):
        normalised_float(3, 5)
