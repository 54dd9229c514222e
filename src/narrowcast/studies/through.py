"""A format reached through a wider one: what computing in bfloat16 does to a value before it becomes an integer."""

from dataclasses import dataclass

from torch import Tensor

from narrowcast.formats import NEAREST_EVEN, Format, Layout, Rounding


@dataclass(frozen=True)
class Through(Format):
    """Values are rounded to ``first``, nearest-even, and then to ``last``: double rounding, as a value.

    Attributes:
        first: the format in which the scaled value is computed.
        last: the format of the codes.
    """

    first: Format
    last: Format

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names."""
        return f"{self.last}-through-{self.first}"

    @property
    def bits(self) -> int:
        """Width of one code."""
        return self.last.bits

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.last.max

    @property
    def smallest_normal(self) -> float:
        """Of the last format."""
        return self.last.smallest_normal

    @property
    def smallest(self) -> float:
        """Of the last format."""
        return self.last.smallest

    @property
    def precision(self) -> int:
        """Of the last format."""
        return self.last.precision

    @property
    def layout(self) -> Layout:
        """Of the last format."""
        return self.last.layout

    def encode(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``, rounded twice."""
        return self.last.encode(self.first.round(x), rounding, random)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of ``codes``."""
        return self.last.decode(codes)

    def round(self, x: Tensor, rounding: Rounding = NEAREST_EVEN, random: Tensor | None = None) -> Tensor:
        """Return the values that ``x`` becomes, rounded twice."""
        return self.last.round(self.first.round(x), rounding, random)
