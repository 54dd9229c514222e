"""narrowcast: write the precision once, emulate it bit for bit on any machine, run it at tensor-core speed.

A *format* says which numbers exist, a *cast* how a tensor is narrowed to one, a *recipe* which casts a training run
uses where. `convert` applies a recipe to a model and returns the table of what became of every layer.
"""

from narrowcast.accumulate import accumulator
from narrowcast.arithmetic import arithmetic
from narrowcast.backend import quantize
from narrowcast.errors import CheckFailed, InputError, NarrowcastError
from narrowcast.formats import Format, Stream, format, formats, roundings
from narrowcast.nn import OPERANDS, LinearSpec
from narrowcast.ops import REUSE, WIDE, Gemm, Reuse
from narrowcast.quantize import PRESETS, Cast, QTensor, cast, round
from narrowcast.recipes import LossScale, Recipe, convert, recipe, recipes
from narrowcast.transforms import Hadamard

__version__ = "0.1.0"

__all__ = [
    "OPERANDS",
    "PRESETS",
    "REUSE",
    "WIDE",
    "Cast",
    "CheckFailed",
    "Format",
    "Gemm",
    "Hadamard",
    "InputError",
    "LinearSpec",
    "LossScale",
    "NarrowcastError",
    "QTensor",
    "Recipe",
    "Reuse",
    "Stream",
    "accumulator",
    "arithmetic",
    "cast",
    "convert",
    "format",
    "formats",
    "quantize",
    "recipe",
    "recipes",
    "round",
    "roundings",
]
