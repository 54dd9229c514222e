"""The one table of names. A new format is one row here and gains every contract test."""

from narrowcast.errors import InputError, nearest
from narrowcast.formats.format import Format
from narrowcast.formats.integer import Integer
from narrowcast.formats.minifloat import Bottom, Minifloat, Specials

IEEE, FN, FNUZ, NONE = Specials.IEEE, Specials.FN, Specials.FNUZ, Specials.NONE

_FLOATS = (
    # 32 and 16 bits: beyond the range lies infinity, as in every framework
    Minifloat("float32", 8, 23, 127, saturate=False),
    Minifloat("tf32", 8, 10, 127, saturate=False),
    Minifloat("bfloat16", 8, 7, 127, saturate=False),
    Minifloat("float16", 5, 10, 15, saturate=False),
    # 8 bits, under ml_dtypes' names without "float8_"
    Minifloat("e5m2", 5, 2, 15),
    Minifloat("e4m3fn", 4, 3, 7, FN),
    Minifloat("e4m3", 4, 3, 7),
    Minifloat("e3m4", 3, 4, 3),
    Minifloat("e5m2fnuz", 5, 2, 16, FNUZ),
    Minifloat("e4m3fnuz", 4, 3, 8, FNUZ),
    Minifloat("e4m3b11fnuz", 4, 3, 11, FNUZ),
    # 6 and 4 bits (OCP MX v1.0), and the 4-bit grids that papers compare them with
    Minifloat("e3m2fn", 3, 2, 3, NONE),
    Minifloat("e2m3fn", 2, 3, 1, NONE),
    Minifloat("e2m1fn", 2, 1, 1, NONE),
    Minifloat("e3m0fn", 3, 0, 3, NONE),
    Minifloat("e1m2fn", 1, 2, 1, NONE),
    # scales: unsigned
    Minifloat("e8m0", 8, 0, 127, FN, Bottom.NORMAL, signed=False),
    Minifloat("ue4m3", 4, 3, 7, FN, signed=False),
    Minifloat("ue5m3", 5, 3, 15, FN, signed=False),
    Minifloat("ue5m3_ieee", 5, 3, 15, IEEE, signed=False),
)
_INTEGERS = (
    *(Integer(f"int{n}", n) for n in range(2, 17)),
    *(Integer(f"int{n}_full", n, symmetric=False) for n in range(1, 17)),
    *(Integer(f"uint{n}", n, signed=False, symmetric=False) for n in range(1, 17)),
    Integer("q1.6", 8, fraction=6),  # the element of MXINT8
)
_FORMATS: dict[str, Format] = {f.name: f for f in (*_FLOATS, *_INTEGERS)}
_ALIASES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "e8m7": "bfloat16",
    "e5m10": "float16",
    "e8m0fnu": "e8m0",
    "e2m1": "e2m1fn",
    "e2m3": "e2m3fn",
    "e3m2": "e3m2fn",
}


def formats() -> dict[str, Format]:
    """Return every catalogued format by name."""
    return dict(_FORMATS)


def format(name: str | Format) -> Format:
    """Return the format called ``name`` (or an alias: fp32, bf16, fp16, ...); InputError with the nearest names.

    >>> format("e4m3fn").max
    448.0
    """
    if isinstance(name, Format):
        return name
    found = _FORMATS.get(_ALIASES.get(name, name))
    if found is None:
        raise InputError(f"unknown format {name!r}{nearest(name, [*_FORMATS, *_ALIASES])}")
    return found
