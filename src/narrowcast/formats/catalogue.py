"""The one table of names. A new format is one row here and gains every contract test."""

from functools import lru_cache

from torch import Tensor

from narrowcast.errors import InputError, nearest
from narrowcast.formats.codebook import CODEBOOKS
from narrowcast.formats.families import FAMILIES, Family
from narrowcast.formats.format import Format
from narrowcast.formats.hif8 import HiFloat8
from narrowcast.formats.integer import Integer
from narrowcast.formats.lns import Logarithmic
from narrowcast.formats.minifloat import Minifloat
from narrowcast.formats.philox import Stream
from narrowcast.formats.posit import Posit
from narrowcast.formats.rounding import Rounding
from narrowcast.formats.rounding import rounding as rounding_of
from narrowcast.formats.specials import Bottom, Specials

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
    # 8 bits, IEEE P3109: signed, with infinities
    *(Minifloat(f"binary8p{p}se", 8 - p, p - 1, 1 << (7 - p), Specials.P3109) for p in (3, 4, 5)),
    # 6 and 4 bits (OCP MX v1.0), and the 4-bit grids that papers compare them with
    Minifloat("e3m2fn", 3, 2, 3, NONE),
    Minifloat("e2m3fn", 2, 3, 1, NONE),
    Minifloat("e2m1fn", 2, 1, 1, NONE),
    Minifloat("e3m0fn", 3, 0, 3, NONE),
    Minifloat("e1m2fn", 1, 2, 0, NONE),
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
_TAPERED = (
    HiFloat8(),
    HiFloat8("hif8_sat", saturate=True),
    *(Posit(f"posit{n}_{es}", n, es) for n, es in ((4, 0), (4, 1), (6, 1), (8, 0), (8, 1), (8, 2), (16, 1), (16, 2))),
    Logarithmic("lns8_8", 8, 8),  # LNS-Madam's, and the one of its weight updates
    Logarithmic("lns16_2048", 16, 2048),
)
_FORMATS: dict[str, Format] = {f.name: f for f in (*_FLOATS, *_INTEGERS, *_TAPERED, *CODEBOOKS)}
_ALIASES = {
    "fp32": "float32",
    "binary32": "float32",
    "binary16": "float16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "e8m23": "float32",
    "e8m10": "tf32",
    "e8m7": "bfloat16",
    "e5m10": "float16",
    "e8m0fnu": "e8m0",
    "ue8m0": "e8m0",
    "e2m1": "e2m1fn",
    "e2m3": "e2m3fn",
    "e3m2": "e3m2fn",
}


def formats() -> dict[str, Format]:
    """Return every catalogued format by name."""
    return dict(_FORMATS)


def families() -> tuple[Family, ...]:
    """Return the families whose members are found by a name that spells out the fields (`Family`)."""
    return FAMILIES


def format(name: str | Format) -> Format:
    """Return the format called ``name``: one of the catalogue, an alias (bf16), or a member of a family (e3m4, q3.12).

    InputError with the nearest names, or with what is wrong where the name spells out fields that make no format.

    >>> format("e4m3fn").max
    448.0
    """
    if isinstance(name, Format):
        return name
    found = find(name)
    if found is None:
        raise InputError(f"unknown format {name!r}{nearest(name, known_names())}")
    return found


def find(name: str) -> Format | None:
    """Return the format called ``name``, or None; InputError where a family knows the name but not such a member."""
    name = _ALIASES.get(name, name)
    return _FORMATS[name] if name in _FORMATS else _member(name)


@lru_cache(maxsize=4096)  # so that a member is one object, whose tables are made once
def _member(name: str) -> Format | None:
    """Return the member of a family called ``name``, or None."""
    for family in FAMILIES:
        if match := family.match(name):
            made = family.make(match)
            return made if made.name == name else find(made.name)
    return None


def known_names() -> list[str]:
    """Return every catalogued name, alias and example of a family: what a mistyped name may have meant."""
    return [*_FORMATS, *_ALIASES, *(example for family in FAMILIES for example in family.examples)]


def round(x: Tensor, fmt: "str | Format", rounding: "str | Rounding" = "nearest-even", seed: int = 0) -> Tensor:
    """Return ``x`` rounded onto the grid of ``fmt``: same dtype, shape and device. No scaling.

    float64 keeps its dtype but is rounded once, from float64. Stochastic modes draw from ``seed``.
    """
    mode = rounding_of(rounding)
    draws = Stream(seed).bits(x.shape, device=x.device) if mode.random else None
    return format(fmt).round(x, mode, draws).to(x.dtype)
