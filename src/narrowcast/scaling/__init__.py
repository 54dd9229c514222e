"""Floor 1: which elements share a scale, and how the scale comes about."""

from narrowcast.scaling.by_sign import BySign
from narrowcast.scaling.divided import Divided, DividedTwoLevel
from narrowcast.scaling.double import Double
from narrowcast.scaling.history import Delayed, advance
from narrowcast.scaling.parse import scale_rule
from narrowcast.scaling.rule import Scale, ScaleRule
from narrowcast.scaling.scales import Narrow, One, PowerOfTwo, TwoLevel, Wide
from narrowcast.scaling.tiles import ROW, TENSOR, Tile, tile
from narrowcast.scaling.zero_point import ZeroPoint

__all__ = [
    "ROW",
    "TENSOR",
    "BySign",
    "Delayed",
    "Divided",
    "DividedTwoLevel",
    "Double",
    "Narrow",
    "One",
    "PowerOfTwo",
    "Scale",
    "ScaleRule",
    "Tile",
    "TwoLevel",
    "Wide",
    "ZeroPoint",
    "advance",
    "scale_rule",
    "tile",
]
