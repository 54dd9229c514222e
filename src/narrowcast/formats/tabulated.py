"""Formats given by their values: tapered floats, logarithms, codebooks. Codes of at most 16 bits, in any order.

To round is to look up: the 16 leading bits of a number's sortable key say where among the cuts of the rounding mode it
may lie, and a comparison (a few, for formats of more than 8 bits) says where it does. A table gives value or code.

- Nearest modes cut each cell at its middle. What the middle is, each family says: half way in value, in the bit string
  (posits), in the logarithm. A value is even that is an even number of steps from zero; where codes count steps, as
  those of posits and of HiFloat8's magnitudes do, that is an even code.
- Directed modes and odd need only the order of the values.
- Random modes go up in proportion to the place *in value*, for every family, so that the mean is kept.

A cell that has zero inside it counts as positive: magnitudes are counted from its lower value.
float64 is compared as float64, so it is rounded once. Random modes compute the place in a cell in float64: exact for
float32 inputs in cells whose ends are less than 2**29 apart, else to 2**-52 of the cell.
"""

import math
from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from narrowcast.formats.format import Format, draws_of, float32_of
from narrowcast.formats.ladder import Beyond, Ladder
from narrowcast.formats.lookup import at, cells, ends, lookup, search, slots
from narrowcast.formats.pieces import by_pieces
from narrowcast.formats.rounding import NEAREST_EVEN, RANDOM_BITS, Rounding


class Tabulated(Format):
    """A format of at most 16 bits that is known by its values.

    A member gives its `ladder`, and where it has them its NaN and what lies beyond its ends.
    """

    @abstractmethod
    def ladder(self) -> Ladder:
        """Return the finite values, ascending."""

    @property
    def nan_code(self) -> int | None:
        """Code of NaN, or None."""
        return None

    @property
    def beyond(self) -> Beyond | None:
        """What lies beyond the ends, or None where everything saturates."""
        return None

    @property
    def duplicates(self) -> dict[int, float]:
        """Codes that are never written, with the values that they decode to; other unused codes decode to NaN."""
        return {}

    @cached_property
    def tables(self) -> dict[object, Any]:
        """What has been made of the ladder so far; a cache, of which equality and hash know nothing."""
        return {}

    # --- facts ---

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""
        return ends(self).lowest < 0

    @property
    def max(self) -> float:
        """Largest finite value."""
        return ends(self).highest

    @property
    def smallest(self) -> float:
        """Smallest positive value."""
        return ends(self).smallest

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value that is not subnormal; most of these formats have no subnormals."""
        return self.smallest

    @property
    def precision(self) -> int:
        """Mantissa bits behind the leading one that the step below the largest value is worth."""
        return max(0, self.top_exponent - math.ceil(math.log2(ends(self).last_step)))

    # --- encode, round, decode ---

    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``; see `Format.encode`."""
        return self._look_up(slots(self, x.device).codes, x, rounding, random)

    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the float32 values that ``x`` becomes; NaN stays NaN even where the format has none."""
        return self._look_up(slots(self, x.device).values, x, rounding, random)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 values of ``codes``; codes that stand for nothing decode to NaN."""
        return at(slots(self, codes.device).decoded, codes.int() & ((1 << self.bits) - 1))

    def _look_up(self, table: Tensor, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Return the entries of ``table`` at the slots of what the numbers become."""
        random = draws_of(x, rounding, random)
        x = x if x.dtype == torch.float64 else float32_of(x)
        return by_pieces(lambda piece, draws: at(table, self._slots(piece, rounding, draws)), x, random)

    def _slots(self, x: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
        """Return the slots of what float32 or float64 numbers become."""
        slot = search(x, lookup(self, rounding, x.dtype, x.device))
        if not rounding.drawn:
            return slot
        cell = cells(self, x.device)
        near, step, level = at(cell.near, slot), at(cell.step, slot), at(cell.level, slot)
        place = x.double().clamp(cell.lowest, cell.highest).sub_(near).abs_().div_(at(cell.width, slot))
        place = place.nan_to_num_(0.0).mul_(1 << RANDOM_BITS)
        n = place.int()
        n = (n | (place > n).int() if rounding.sticky else n) + (level << RANDOM_BITS)
        gone = rounding(n, RANDOM_BITS, step >> 31, random) - level
        return slot - (step >> 31) + step * gone
