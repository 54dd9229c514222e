"""Which elements share a scale: the whole tensor, a row, 1xN runs, or MxN squares.

The last axis is always the contraction axis K, so a tile's columns run along K. A tile views a tensor as blocks and
reduces over them; nothing is copied unless a ragged edge has to be padded.
"""

import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.views import split_axis

WHOLE = 0  # "the whole extent of this axis"


@dataclass(frozen=True)
class Tile:
    """A tile of ``rows x cols`` elements over the last two axes; 0 stands for the whole extent.

    ``tensor`` is (0, 0), ``row`` is (1, 0), ``1x32`` is (1, 32). With ``pad``, a size that the tile does not divide
    is filled up with zeros and cut back afterwards; without, it is an error.
    """

    rows: int
    cols: int
    pad: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0 or (self.rows > 1 and self.cols == WHOLE) or (self.rows == 0 and self.cols):
            raise InputError(f"tile {self.rows}x{self.cols}: expected tensor, row, 1xN or MxN with positive sizes")
        if self.pad and self.cols == WHOLE:
            raise InputError(f"tile {'tensor' if self.is_tensor else 'row'}: it fits any size, so '+pad' means nothing")

    @property
    def is_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.rows == WHOLE

    def padded_shape(self, shape: tuple[int, ...], what: str = "tensor") -> tuple[int, ...]:
        """Return ``shape`` with its last two axes multiples of the tile, where ``pad`` allows it."""
        if self.is_tensor or self.cols == WHOLE:
            return shape
        if not shape:
            raise InputError(f"{what} is 0-d: tile {self} needs an axis to run along; reshape it to [1]")
        self._check_axes(shape)
        short = (-shape[-1] % self.cols, -shape[-2] % self.rows if len(shape) > 1 else 0)
        if short == (0, 0):
            return shape
        if not self.pad:
            raise InputError(
                f"{what} of shape {tuple(shape)}: tile {self} does not divide its last "
                f"{'axis' if self.rows == 1 else 'two axes'}; use a smaller tile or '{self}+pad'"
            )
        if len(shape) == 1:
            return (shape[0] + short[0],)
        return (*shape[:-2], shape[-2] + short[1], shape[-1] + short[0])

    def padded(self, x: Tensor, what: str = "tensor") -> Tensor:
        """Return ``x`` with its last two axes multiples of the tile, zero-filled where ``pad`` allows it."""
        shape = tuple(x.shape)
        wanted = self.padded_shape(shape, what)
        if wanted == shape:
            return x
        return F.pad(x, [size for axis in (-1, -2)[: x.dim()] for size in (0, wanted[axis] - shape[axis])])

    def blocks(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return a view of ``x`` (already `padded`) and the axes of it that lie inside one tile."""
        if self.is_tensor:
            return x, tuple(range(x.dim()))
        if self.cols == WHOLE:
            return x, (-1,)
        view = split_axis(x, -1, self.cols)
        if self.rows == 1:
            return view, (-1,)
        self._check_axes(tuple(x.shape))
        return split_axis(view, -3, self.rows), (-3, -1)

    def spread(self, per_tile: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return ``per_tile`` (one number each, as reducing over `blocks` leaves it) for every element of ``shape``."""
        blocks, _ = self.blocks(per_tile.new_zeros(()).expand(shape))
        return per_tile.expand(blocks.shape).reshape(shape)

    def _check_axes(self, shape: tuple[int, ...]) -> None:
        if self.rows > 1 and len(shape) < 2:
            raise InputError(f"tile {self} needs at least two axes, found shape {tuple(shape)}")

    def count(self, shape: tuple[int, ...]) -> int:
        """Return how many tiles cover a tensor of ``shape``."""
        if self.is_tensor:
            return 1
        *lead, last = shape or (1,)
        tiles = 1 if self.cols == WHOLE else -(-last // self.cols)
        for position, size in enumerate(reversed(lead)):
            tiles *= -(-size // self.rows) if position == 0 else size
        return tiles

    def __str__(self) -> str:
        if self.is_tensor:
            return "tensor"
        name = "row" if self.cols == WHOLE else f"{self.rows}x{self.cols}"
        return name + ("+pad" if self.pad else "")


TENSOR, ROW = Tile(WHOLE, WHOLE), Tile(1, WHOLE)


def tile(text: str) -> Tile:
    """Parse ``tensor``, ``row``, ``1x32``, ``128x128`` or any of the last two with ``+pad``."""
    name, plus, pad = text.partition("+")
    if plus and pad != "pad":
        raise InputError(f"unknown tile option {pad!r} in {text!r}: expected '+pad'")
    if name in ("tensor", "row") and not plus:
        return TENSOR if name == "tensor" else ROW
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if sizes is None:
        raise InputError(f"unknown tile {text!r}: expected tensor, row, 1xN or MxN, the last two also with +pad")
    return Tile(int(sizes[1]), int(sizes[2]), pad=bool(plus))
