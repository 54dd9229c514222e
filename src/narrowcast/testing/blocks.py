"""The blocks that tell scaled formats apart: each threshold of a scale rule, each corner of the element, the bad ones.

A scene is one matrix, given to the foreign function in one call: where the whole tensor shares a scale, its blocks
belong together. Blocks with infinities or NaNs are scenes of their own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.formats import Stream
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, PowerOfTwo, Tile, TwoLevel
from narrowcast.testing.inputs import CLASSES, FLOAT32_MAX, beside, classify, corners, every_half

MIXED = "mixed"
ACROSS = 4  # blocks side by side in a scene's matrix
_ROW = 64  # elements of a row, for tiles as wide as the tensor
_BUDGET = 1 << 17  # elements of one scene
NAMES = (
    *CLASSES,
    "in a block of zeros",
    "in a block that is not finite",
    "in a block with a subnormal scale",
    "scale of a block of zeros",
    "scale of a block that is not finite",
    "subnormal scale",
    "scale of a block at a rule's threshold",
    "scale of another block",
    "scale of the tensor",
)
IN_ZEROS, IN_BAD, IN_TINY, *_SCALES = range(len(CLASSES), len(NAMES))
SCALE_ZEROS, SCALE_BAD, SCALE_TINY, SCALE_THRESHOLD, SCALE_OTHER, SCALE_TENSOR = _SCALES


@dataclass(frozen=True, eq=False)
class Scene:
    """Blocks for one call: float32 ``[n, size]``; ``thresholds`` says whether their maxima were chosen for that."""

    name: str
    blocks: Tensor
    thresholds: bool = False


def block_size(tile: Tile) -> int:
    """Return how many elements of a scene share a scale."""
    return (tile.rows or 1) * tile.cols if tile.cols else _ROW


def to_matrix(blocks: Tensor, tile: Tile) -> Tensor:
    """Lay ``[n, size]`` blocks out as the matrix whose tiles they are, `ACROSS` side by side."""
    if not tile.cols:
        return blocks.reshape(8, -1) if tile.is_tensor else blocks
    grid = blocks.view(-1, ACROSS, tile.rows, tile.cols).transpose(1, 2)
    return grid.reshape(-1, ACROSS * tile.cols).contiguous()


def to_blocks(matrix: Tensor, tile: Tile) -> Tensor:
    """Return the blocks of a matrix: the inverse of `to_matrix`."""
    if not tile.cols:
        return matrix.reshape(1, -1) if tile.is_tensor else matrix
    grid = matrix.view(-1, tile.rows, ACROSS, tile.cols).transpose(1, 2)
    return grid.reshape(-1, tile.rows * tile.cols)


def scenes(cast: Cast) -> list[Scene]:
    """Return every scene for ``cast``."""
    size = block_size(cast.tile)
    found = [
        Scene("maxima at thresholds", _with_maxima(_maxima(cast), size), thresholds=True),
        Scene("corners of the element", _element_corners(cast, size)),
        *(Scene(f"every finite {name}", _filled(half, size)) for name, half in _halves().items()),
        Scene(MIXED, _mixed(size)),
        Scene("zeros", _zeros(size)),
        *(Scene(f"with {name}", _bad(size, *values)) for name, values in _BAD.items()),
    ]
    whole = [Scene(scene.name, _whole(scene.blocks), scene.thresholds) for scene in found]
    return [piece for scene in whole for piece in _single(scene)] if cast.tile.is_tensor else whole


def classes(blocks: Tensor, scaled: Tensor, cast: Cast) -> Tensor:
    """Return the class of each element ``[n, size]``: its block's, or that of its scaled value."""
    amax = blocks.abs().amax(-1, keepdim=True)
    found = classify(scaled.flatten(), cast.format, cast.rounding).view(blocks.shape)
    found = torch.where(_tiny(amax, cast), IN_TINY, found)
    found = torch.where(amax == 0, IN_ZEROS, found)
    return torch.where(amax.isfinite(), found, IN_BAD)


def _tiny(amax: Tensor, cast: Cast) -> Tensor:
    """Where amax / max is subnormal in float32: few libraries scale such blocks alike, and few need to."""
    return amax.double() < 2.0**-126 * cast.format.max


def scale_classes(blocks: Tensor, cast: Cast, thresholds: bool) -> Tensor:
    """Return the class of each block's scale ``[n]``."""
    amax = blocks.abs().amax(-1)
    found = torch.where(_tiny(amax, cast), SCALE_TINY, SCALE_THRESHOLD if thresholds else SCALE_OTHER)
    found = torch.where(amax == 0, SCALE_ZEROS, found)
    return torch.where(amax.isfinite(), found, SCALE_BAD)


# --- maxima ---


def _maxima(cast: Cast) -> Tensor:
    """Return the maxima at which some rule of this kind of scale turns, with their neighbours, over all exponents."""
    top = cast.format.max
    if isinstance(cast.scale, Narrow | TwoLevel):
        points = corners(cast.scale.format).double()
        inside = points[(points > 0) & (points <= cast.scale.format.max)]
        marks = (torch.cat([inside, inside * 0.3]) * top).float()
    elif isinstance(cast.scale, PowerOfTwo):
        halves = [2.0 - 2.0 ** -(bits + 1) for bits in {1, 2, 3, cast.format.precision}]
        inside = torch.tensor([1.0, math.sqrt(2.0), top / 2.0**cast.format.top_exponent, *halves], dtype=torch.float64)
        powers = torch.exp2(torch.arange(-149, 128, dtype=torch.float64))
        marks = (inside[:, None] * powers).flatten().clamp_max(FLOAT32_MAX).float()
    else:
        marks = torch.exp2(torch.linspace(-149, 127.99, 1 << 10, dtype=torch.float64)).float()
    found: Tensor = torch.unique(torch.cat([beside(marks, step) for step in (-1, 0, 1)]))
    return found[found > 0]


def _with_maxima(maxima: Tensor, size: int) -> Tensor:
    """Return one block for each maximum: it stands at a changing place, and the others lie well spread below it."""
    maxima = _thinned(maxima, _BUDGET // size)
    fractions = (torch.arange(size) * 0.618034 % 1.0) * torch.where(torch.arange(size) % 3 == 0, -1.0, 1.0)
    blocks = maxima[:, None] * fractions
    place = torch.arange(len(maxima))
    blocks[place, place * 7 % size] = torch.where(place % 2 == 0, maxima, -maxima)
    return blocks


def _thinned(x: Tensor, count: int) -> Tensor:
    if len(x) <= count:
        return x
    kept: Tensor = x[torch.linspace(0, len(x) - 1, max(count, 1), dtype=torch.float64).long()]
    return kept


# --- elements ---


def _element_corners(cast: Cast, size: int) -> Tensor:
    """Return blocks of the element's corner values, under maxima that leave most rules' scale a known power of two."""
    fmt = cast.format
    points = corners(fmt)
    powers = (0, -20, 7) if isinstance(cast.scale, PowerOfTwo) else (0, -5, 5)
    top = 2.0**fmt.top_exponent
    parts = []
    for mark in (fmt.max, top, 1.25 * top, 1.6 * top, float(beside(torch.tensor(2 * top), -1))):
        inside = _thinned(points[points.abs() <= mark], _BUDGET // 15)
        chunks = _filled(inside, size - 1)
        blocks = torch.cat([torch.full((len(chunks), 1), mark), chunks], -1)
        parts += [blocks * 2.0**power for power in powers]
    blocks = torch.cat(parts)
    if isinstance(cast.scale, TwoLevel):  # the tensor's own scale becomes a power of two
        blocks[0, 0] = fmt.max * cast.scale.format.max
    return blocks


def _halves() -> dict[str, Tensor]:
    half = every_half()
    both = {"bfloat16": half[: 1 << 16], "float16": half[1 << 16 :]}
    return {name: x[x.isfinite()] for name, x in both.items()}


def _mixed(size: int) -> Tensor:
    """Return sums of uniform numbers, each block under its own power of two."""
    count = max(ACROSS, (1 << 15) // size)
    uniform = Stream(3).bits((4, count, size)).double() / 65536
    powers = torch.exp2((torch.arange(count) % 21 - 10).double())
    return ((uniform.sum(0) - 2) * powers[:, None]).float()


# --- zeros and worse ---

_BAD = {
    "an infinity": (math.inf,),
    "a negative infinity": (-math.inf,),
    "a NaN": (math.nan,),
    "infinities and a NaN": (math.inf, -math.inf, math.nan),
}


def _zeros(size: int) -> Tensor:
    blocks = torch.zeros(8, size)
    blocks[1] = -0.0
    blocks[2, ::2] = -0.0
    blocks[3, 0], blocks[4, -1], blocks[5, 1] = 2.0**-149, -(2.0**-133), 2.0**-126
    blocks[6, 3], blocks[7] = 1e-20, 1.0
    return blocks


def _bad(size: int, *values: float) -> Tensor:
    blocks = _mixed(size)[:ACROSS].clone()
    for place, value in enumerate(values):
        blocks[1, (5 * place + 2) % size] = value
    return blocks


# --- shapes ---


def _filled(x: Tensor, size: int) -> Tensor:
    """Cut ``x`` into blocks; zeros fill up the last."""
    padded: Tensor = torch.nn.functional.pad(x, (0, -len(x) % size))
    return padded.view(-1, size)


def _whole(blocks: Tensor) -> Tensor:
    """Repeat the last block until the blocks fill the matrix."""
    short = -len(blocks) % ACROSS
    return torch.cat([blocks, blocks[-1:].expand(short, -1)]) if short else blocks


def _single(scene: Scene) -> list[Scene]:
    """Return scenes of one block each, a few of them: for tiles that are the whole tensor."""
    picked = _thinned(torch.arange(len(scene.blocks)), 24)
    return [Scene(scene.name, scene.blocks[i : i + 1], scene.thresholds) for i in picked]
