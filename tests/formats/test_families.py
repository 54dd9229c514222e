"""Formats found by a name that spells out their fields: which fields each name means, and what is refused."""

import pytest

from narrowcast.errors import InputError
from narrowcast.formats import Bottom, Integer, Minifloat, Specials, families, find, formats
from narrowcast.formats import format as format_
from narrowcast.quantize import cast

IEEE, FN, FNUZ, NONE = Specials.IEEE, Specials.FN, Specials.FNUZ, Specials.NONE
EXAMPLES = [example for family in families() for example in family.examples]
ROWS_THAT_READ_OTHERWISE = {"e8m0"}  # by the family a signed 9-bit format; the catalogue's is OCP's unsigned scale


@pytest.mark.parametrize(
    "fmt",
    [
        Minifloat("e3m3", 3, 3, 3),
        Minifloat("e6m5", 6, 5, 31, saturate=False),
        Minifloat("e8m3", 8, 3, 127, saturate=False),
        Minifloat("e2m2fn", 2, 2, 1, NONE),
        Minifloat("e2m5fn", 2, 5, 1, FN),
        Minifloat("e4m3b8_none", 4, 3, 8, NONE),
        Minifloat("e2m1_fn", 2, 1, 1, FN),
        Minifloat("e3m4fnuz", 3, 4, 4, FNUZ),
        Minifloat("ue4m4", 4, 4, 7, FN, signed=False),
        Minifloat("ue4m4_none", 4, 4, 7, NONE, signed=False),
        Minifloat("ue4m4_ieee", 4, 4, 7, IEEE, signed=False),
        Minifloat("e4m3b-2", 4, 3, -2),
        Minifloat("e4m3fn_ftz_open", 4, 3, 7, FN, Bottom.ZERO, saturate=False),
        Minifloat("e6m5_sat", 6, 5, 31),
        Minifloat("binary8p4sf", 4, 3, 8, FNUZ),
        Minifloat("binary8p3ue", 6, 2, 32, Specials.P3109, signed=False),
        Minifloat("binary8p1uf", 8, 0, 128, FN, signed=False),
        Minifloat("binary12p6se", 6, 5, 32, Specials.P3109, saturate=False),
        Integer("q3.4", 8, fraction=4),
        Integer("q3.4_full", 8, fraction=4, symmetric=False),
        Integer("uq2.6", 8, fraction=6, signed=False, symmetric=False),
        Integer("q-2.9", 8, fraction=9),
    ],
    ids=str,
)
def test_a_name_means_these_fields(fmt):
    assert find(fmt.name) == format_(fmt.name) == fmt
    assert fmt.name not in formats()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("e4m3b7fn", "e4m3fn"), ("e4m3_fn", "e4m3fn"), ("e2m1_none", "e2m1fn"), ("e5m2_ieee_sat", "e5m2"),
     ("e5m2b16fnuz", "e5m2fnuz"), ("ue4m3fn", "ue4m3"), ("e04m3b07", "e4m3"), ("e6m5_open", "e6m5"),
     ("binary8p3", "binary8p3se"), ("binary8p4f", "binary8p4sf"), ("binary8p4u_sat", "binary8p4ue"),
     ("uint08", "uint8"), ("q01.6", "q1.6"), ("e5m10_open", "float16"), ("e8m7_open", "bfloat16")],
)  # fmt: skip
def test_every_spelling_leads_to_the_one_canonical_name(spelling, name):
    assert format_(spelling).name == name
    assert format_(spelling) == format_(name)


def test_the_catalogue_is_what_the_families_make_of_its_names():
    for name, fmt in formats().items():
        for family in families():
            if (match := family.match(name)) and name not in ROWS_THAT_READ_OTHERWISE:
                assert family.make(match) == fmt


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_canonical_and_not_in_the_catalogue(name):
    assert format_(name).name == name
    assert name not in formats()
    assert cast(name).format == format_(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("e9m2", "exponent must be 1 to 8 bits"),
        ("e0m3", "exponent must be 1 to 8 bits"),
        ("e4m24", "mantissa 0 to 23"),
        ("e4m3b300", "bias 300 is out of range"),
        ("e8m3fn", "its range does not fit float32's"),
        ("ue4m3fnuz", "fnuz needs a sign bit"),
        ("binary8p8", "precision of 1 to 7 in 8 bits, found 8"),
        ("binary8p9uf", "precision of 1 to 8 in 8 bits, found 9"),
        ("binary8p0", "precision of 1 to 7 in 8 bits, found 0"),
        ("binary16p7", "exponent must be 1 to 8 bits"),
        ("e5m21", "more than 20 mantissa bits need float32's bias"),
        ("e8m3b129", "bias 129 is out of range"),
        ("e2m1fn_open", "can only saturate"),
        ("e3m0fn_ftz", "nothing is subnormal"),
        ("int0", "1 to 16 bits, found 0"),
        ("int44", "1 to 16 bits, found 44"),
        ("int1", "use int1_full"),
        ("uint4_full", "use uint4"),
        ("q9.12", "1 to 16 bits, found 22"),
        ("uq3.4_full", "use uq3.4"),
        ("q-8.7", "1 to 16 bits, found 0"),
        ("q-90.101", "0 to 100 fractional bits"),
    ],
)
def test_nonsense_is_refused_in_one_line(name, why):
    for look_up in (format_, cast):
        with pytest.raises(InputError, match=why) as error:
            look_up(name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["E4M3", "e4m3fx", "m3e4", "q3", "q3.", "float8_e4m3fn", ""])
def test_other_names_are_unknown(name):
    assert find(name) is None
    with pytest.raises(InputError, match="unknown format"):
        format_(name)
