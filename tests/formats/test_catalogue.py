"""The table of names: everything ml_dtypes has, aliases, and a helpful refusal."""

import ml_dtypes
import pytest

from narrowcast.errors import InputError
from narrowcast.formats import Format, Minifloat, formats
from narrowcast.formats import format as format_

COMPLEX = {"bcomplex32", "complex32"}
ML_DTYPES_FLOATS = sorted(
    name for name in vars(ml_dtypes) if ("float" in name) and not name.startswith("_") and name not in COMPLEX
)
ML_DTYPES_INTEGERS = sorted(name for name in vars(ml_dtypes) if name.startswith(("int", "uint")))


@pytest.mark.parametrize("name", ML_DTYPES_FLOATS)
def test_every_float_type_of_ml_dtypes_is_here_under_its_name(name):
    fmt, info = format_(name.partition("_")[2] or name), ml_dtypes.finfo(getattr(ml_dtypes, name))
    assert isinstance(fmt, Minifloat)
    assert (fmt.bits, fmt.max, fmt.smallest, fmt.mantissa) == (info.bits, info.max, info.smallest_subnormal, info.nmant)


@pytest.mark.parametrize("name", ML_DTYPES_INTEGERS)
def test_every_integer_type_of_ml_dtypes_is_here(name):
    full, info = name if name.startswith("uint") else f"{name}_full", ml_dtypes.iinfo(getattr(ml_dtypes, name))
    values = format_(full).values()
    assert (values[0], values[-1]) == (info.min, info.max)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16"), ("e8m7", "bfloat16"), ("e5m10", "float16"),
     ("e8m10", "tf32"), ("e8m23", "float32"), ("e8m0fnu", "e8m0"), ("ue8m0", "e8m0"), ("e2m1", "e2m1fn"), ("e2m3", "e2m3fn"), ("e3m2", "e3m2fn")],
)  # fmt: skip
def test_aliases(alias, name):
    assert format_(alias) is format_(name)
    assert alias not in formats()


def test_names_are_the_keys_and_formats_pass_through():
    for name, fmt in formats().items():
        assert isinstance(fmt, Format)
        assert fmt.name == str(fmt) == name
        assert format_(name) is fmt
        assert format_(fmt) is fmt


def test_the_table_handed_out_is_a_copy():
    formats().clear()
    assert "e4m3fn" in formats()


def test_integers_of_1_to_16_bits_in_each_kind():
    known = formats()
    assert all(f"uint{n}" in known and f"int{n}_full" in known for n in range(1, 17))
    assert all(f"int{n}" in known for n in range(2, 17))


@pytest.mark.parametrize(("name", "nearest"), [("e4m3fm", "e4m3fn"), ("imt4", "int4"), ("FP16", "fp16")])
def test_unknown_name_offers_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"unknown format '{name}'.*{nearest}") as error:
        format_(name)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)


def test_listing_the_codes_of_a_wide_format_is_refused():
    with pytest.raises(InputError, match=r"tf32 has 2\*\*19 codes"):
        format_("tf32").codes()
