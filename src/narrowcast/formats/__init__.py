"""Floor 0: which numbers exist, how reals become them, and where random bits come from."""

from narrowcast.formats.catalogue import families, find, format, formats, known_names, round
from narrowcast.formats.codebook import Codebook, codebook, from_quantiles
from narrowcast.formats.families import Family
from narrowcast.formats.format import Format, Layout
from narrowcast.formats.hif8 import HiFloat8
from narrowcast.formats.integer import Integer
from narrowcast.formats.lns import Logarithmic
from narrowcast.formats.minifloat import Minifloat
from narrowcast.formats.multi import Multi, multi
from narrowcast.formats.packing import pack, unpack
from narrowcast.formats.philox import Stream, philox
from narrowcast.formats.posit import Posit
from narrowcast.formats.rounding import NEAREST_EVEN, RANDOM_BITS, Rounding, rounding, roundings
from narrowcast.formats.specials import Bottom, Specials
from narrowcast.formats.tabulated import Tabulated

__all__ = [
    "NEAREST_EVEN",
    "RANDOM_BITS",
    "Bottom",
    "Codebook",
    "Family",
    "Format",
    "HiFloat8",
    "Integer",
    "Layout",
    "Logarithmic",
    "Minifloat",
    "Multi",
    "Posit",
    "Rounding",
    "Specials",
    "Stream",
    "Tabulated",
    "codebook",
    "families",
    "find",
    "format",
    "formats",
    "from_quantiles",
    "known_names",
    "multi",
    "pack",
    "philox",
    "round",
    "rounding",
    "roundings",
    "unpack",
]
