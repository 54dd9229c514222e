"""What scales of two levels share: a code per tile, under something in float32 that is stored once per tensor."""

from abc import abstractmethod

from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Minifloat
from narrowcast.scaling.rule import ScaleRule


class SecondLevel(ScaleRule):
    """A rule that stores codes of ``format``, one a tile, and a second level.

    Attributes:
        format: of the codes.
    """

    format: Format

    @abstractmethod
    def factors(self, values: Tensor, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return `Scale.back` from the decoded codes and the second level."""

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """Decode the codes; InputError without a second level."""
        if tensor is None:
            raise InputError(f"scale {self}: needs its second level to decode")
        return self.factors(self.format.decode(stored), tensor)

    @property
    def bits(self) -> int:
        """One code."""
        return self.format.bits

    @property
    def tensor_bits(self) -> int:
        """One float32."""
        return 32

    def check_range(self) -> None:
        """Raise InputError where the codes alone reach as far as the second level could take them."""
        if isinstance(self.format, Minifloat) and self.format.exponent == 8:
            raise InputError(f"scale {self}: {self.format} spans float32's whole range; a second level adds nothing")
