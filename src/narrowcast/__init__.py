"""narrowcast: write the precision once, emulate it bit for bit on any machine, run it at tensor-core speed.

A *format* says which numbers exist, a *cast* how a tensor is narrowed to one, a *recipe* which casts a training run
uses where. `convert` applies a recipe to a model and returns the table of what became of every layer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from narrowcast.accumulate import accumulator
from narrowcast.arithmetic import arithmetic
from narrowcast.backend import quantize
from narrowcast.errors import CheckFailed, InputError, NarrowcastError
from narrowcast.formats import Format, Stream, format, formats, round, roundings
from narrowcast.nn import OPERANDS, LinearSpec
from narrowcast.ops import REUSE, WIDE, Gemm, Reuse
from narrowcast.optim import optimizer, optimizers
from narrowcast.quantize import PRESETS, Cast, QTensor, cast
from narrowcast.recipes import LossScale, Recipe, convert, recipe, recipes
from narrowcast.transforms import Hadamard

if TYPE_CHECKING:
    from narrowcast import ptq
    from narrowcast.io.pretrained import save_pretrained
    from narrowcast.ptq.huggingface import HFConfig
    from narrowcast.ptq.pretrained import describe, load

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
    "HFConfig",
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
    "describe",
    "format",
    "formats",
    "load",
    "optimizer",
    "optimizers",
    "ptq",
    "quantize",
    "recipe",
    "recipes",
    "round",
    "roundings",
    "save_pretrained",
]

#: public names that are imported when they are first used: "module" or "module:name"
_LATER = {
    "HFConfig": "narrowcast.ptq.huggingface:HFConfig",
    "describe": "narrowcast.ptq.pretrained:describe",
    "load": "narrowcast.ptq.pretrained:load",
    "ptq": "narrowcast.ptq",
    "save_pretrained": "narrowcast.io.pretrained:save_pretrained",
}


def __getattr__(name: str) -> Any:
    """Import one of `_LATER`."""
    if name not in _LATER:
        raise AttributeError(f"module 'narrowcast' has no attribute {name!r}")
    module, _, attribute = _LATER[name].partition(":")
    found = import_module(module)
    globals()[name] = getattr(found, attribute) if attribute else found
    return globals()[name]
