"""Floor 0: which numbers exist, how reals become them, and where random bits come from."""

from narrowcast.formats.catalogue import format, formats
from narrowcast.formats.format import Format, Layout
from narrowcast.formats.integer import Integer
from narrowcast.formats.minifloat import Bottom, Minifloat, Specials
from narrowcast.formats.packing import pack, unpack
from narrowcast.formats.philox import Stream, philox
from narrowcast.formats.rounding import NEAREST_EVEN, RANDOM_BITS, Rounding, rounding, roundings

__all__ = [
    "NEAREST_EVEN",
    "RANDOM_BITS",
    "Bottom",
    "Format",
    "Integer",
    "Layout",
    "Minifloat",
    "Rounding",
    "Specials",
    "Stream",
    "format",
    "formats",
    "pack",
    "philox",
    "rounding",
    "roundings",
    "unpack",
]
