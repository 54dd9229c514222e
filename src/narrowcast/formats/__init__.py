"""Floor 0: which numbers exist, how reals become them, and where random bits come from."""

from narrowcast.formats.catalogue import families, find, format, formats, known_names
from narrowcast.formats.families import Family
from narrowcast.formats.format import Format, Layout
from narrowcast.formats.integer import Integer
from narrowcast.formats.minifloat import Minifloat
from narrowcast.formats.packing import pack, unpack
from narrowcast.formats.philox import Stream, philox
from narrowcast.formats.rounding import NEAREST_EVEN, RANDOM_BITS, Rounding, rounding, roundings
from narrowcast.formats.specials import Bottom, Specials

__all__ = [
    "NEAREST_EVEN",
    "RANDOM_BITS",
    "Bottom",
    "Family",
    "Format",
    "Integer",
    "Layout",
    "Minifloat",
    "Rounding",
    "Specials",
    "Stream",
    "families",
    "find",
    "format",
    "formats",
    "known_names",
    "pack",
    "philox",
    "rounding",
    "roundings",
    "unpack",
]
