"""What a page about formats draws: staircases of spacing, laws of the crest factor, and where two laws cross."""

import math
from dataclasses import asdict
from itertools import combinations
from typing import Any

from narrowcast.analysis.crest import crest_factors, gaussian_blocks, spread
from narrowcast.analysis.distributions import USUAL
from narrowcast.analysis.format_error import SAMPLE, TILES
from narrowcast.analysis.grid import spacing
from narrowcast.quantize import Cast
from narrowcast.quantize import cast as cast_of

BLOCK = 32  # elements of the blocks that a cast without tiles of its own is judged in
_LARGEST = 4096  # of a whole row or tensor, as far as its largest element counts
_MATERIAL = 0.3  # dB by which each of two formats must lead somewhere
_ENDS = [1.05 * 1.09**i for i in range(32)]  # 1.05 to 15: where Gaussian blocks end, in standard deviations


def curves(name: str) -> dict[str, Any]:
    """Return the curves of one format, preset or spelling as plain JSON values.

    ``spacing``: magnitudes and the gap at each. ``crest``: crest factors, ascending, and the SQNR in dB that Gaussian
    blocks of ``block`` elements keep there.
    """
    cast = cast_of(name)
    magnitudes, gaps = spacing(cast.format)
    law = sorted(gaussian_blocks(cast, _ENDS, block := block_of(cast)))
    crest = {"crest": [k for k, _ in law], "sqnr_db": [d for _, d in law], "block": block}
    return {"spacing": {"magnitude": magnitudes, "gap": gaps}, "crest": crest}


def block_of(cast: Cast) -> int:
    """Return how many elements share a scale of ``cast``: of a bare format 32, of a row or tensor 4096."""
    if cast == Cast(cast.format):
        return BLOCK
    return min(cast.tile.rows * cast.tile.cols or _LARGEST, _LARGEST)


def crossings(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return where the laws of two of ``found`` (each with ``name`` and `curves`' ``crest``) first cross.

    Each as ``{"below", "above", "crest", "sqnr_db"}``: which of the two keeps more up to that crest factor, and beyond.
    """
    pairs = []
    for a, b in combinations(found, 2):
        at = _first_crossing(a["crest"], b["crest"])
        if at is not None:
            crest, decibels, a_first = at
            below, above = (a, b) if a_first else (b, a)
            pairs.append({"below": below["name"], "above": above["name"], "crest": crest, "sqnr_db": decibels})
    return pairs


def _first_crossing(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float, bool] | None:
    low, high = max(a["crest"][0], b["crest"][0]), min(a["crest"][-1], b["crest"][-1])
    if high <= low:
        return None
    grid = [low * (high / low) ** (i / 200) for i in range(201)]
    gaps = [_at(a, k) - _at(b, k) for k in grid]
    if min(max(gaps), -min(gaps)) < _MATERIAL:
        return None  # two laws that are almost one
    for i in range(len(grid) - 1):
        if gaps[i] * gaps[i + 1] < 0 and math.copysign(1, gaps[i]) == math.copysign(1, gaps[0]):
            share = gaps[i] / (gaps[i] - gaps[i + 1])
            crest = grid[i] + share * (grid[i + 1] - grid[i])
            return crest, _at(a, crest), gaps[i] > 0
    return None


def _at(curve: dict[str, Any], crest: float) -> float:
    """Return the dB of ``curve`` at ``crest``, between its points on a straight line."""
    ks, decibels = curve["crest"], curve["sqnr_db"]
    place = next((i for i in range(1, len(ks)) if ks[i] >= crest), len(ks) - 1)
    share = (crest - ks[place - 1]) / max(ks[place] - ks[place - 1], 1e-12)
    return float(decibels[place - 1] + share * (decibels[place] - decibels[place - 1]))


def usual_crests(seed: int = 0) -> list[dict[str, Any]]:
    """Return the quartiles of the crest factor of each usual distribution at each tile, one row each."""
    rows = []
    for law in USUAL:
        x = law.sample(SAMPLE, seed)
        for size in TILES[1:]:
            found = spread(crest_factors(x, size))
            assert found is not None
            rows.append({"distribution": law.label, "tile": str(size).removesuffix("+pad"), **asdict(found)})
    return rows
