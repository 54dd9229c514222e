"""Floor 1: which elements share a scale, and how the scale comes about."""

from narrowcast.scaling.history import Delayed, advance
from narrowcast.scaling.scales import Narrow, One, PowerOfTwo, Scale, ScaleRule, TwoLevel, Wide, scale_rule
from narrowcast.scaling.tiles import ROW, TENSOR, Tile, tile

__all__ = [
    "ROW",
    "TENSOR",
    "Delayed",
    "Narrow",
    "One",
    "PowerOfTwo",
    "Scale",
    "ScaleRule",
    "Tile",
    "TwoLevel",
    "Wide",
    "advance",
    "scale_rule",
    "tile",
]
