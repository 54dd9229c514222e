"""Double quantization: the scales of the tiles are themselves quantized, in groups of consecutive tiles.

    s = amax / max(element);  m = mean(s) or 0;  t = max over the group of |s - m| / max(codes)
    stored: codes of round((s - m) / t), one float32 t per group, one float32 m;  back = decode(code) * t + m

With codes of 8 bits and groups of 256 tiles a scale costs 8.125 bits instead of 32. The mean is worth taking off
where codes have a sign: scales are positive, and half of the codes would never be used.
A scale that would become zero or negative flushes its tile, which is far below the others, to zeros.
Source: Dettmers et al. 2023, "QLoRA", section 3 (blocks of 256, mean taken off); bitsandbytes stores s * max(element).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format
from narrowcast.scaling.rule import Scale
from narrowcast.scaling.scales import FLOAT32_MAX, divided
from narrowcast.scaling.second_level import SecondLevel


@dataclass(frozen=True)
class Double(SecondLevel):
    """Codes of ``format`` per tile under a float32 scale per ``group`` tiles; spelled ``dynamic8+fp32x256-mean``.

    Tiles are counted through the whole tensor in the order in which they are stored. A value that is not finite poisons
    the whole tensor, as with two levels.

    Attributes:
        format: of the codes: a codebook, a minifloat, an integer.
        group: tiles per second-level scale.
        centred: whether the mean of all scales is taken off first.
    """

    format: Format
    group: int = 256
    centred: bool = False

    def __post_init__(self) -> None:
        if self.group < 1 or self.format.bits > 16:
            raise InputError(f"scale {self}: expected groups of at least 1 and codes of at most 16 bits")

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return the codes of the scales, and second level as one vector: the mean, then one scale per group."""
        exact = divided(amax, element.max).clamp(max=FLOAT32_MAX)
        exact = torch.where(amax.isfinite(), exact, float("nan"))
        mean = exact.double().mean().float() if self.centred and exact.numel() else exact.new_zeros(())
        rows = self._rows(exact - mean)
        second = divided(rows.abs().amax(-1), self.format.max)
        second = torch.where(second == 0, 1.0, second)
        second = torch.where(exact.isfinite().all(), second, float("nan"))
        inside = rows * second.reciprocal().clamp_max(FLOAT32_MAX)[:, None]
        codes = self.format.encode(inside).flatten()[: amax.numel()].view(amax.shape)
        tensor = torch.cat([mean[None], second])
        back = self.restore(codes, tensor)
        return Scale(codes, back, back[0].reciprocal().clamp_max(FLOAT32_MAX), tensor)

    def factors(self, values: Tensor, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the scales, group by group."""
        back = (self._rows(values.float()) * tensor[1:, None] + tensor[0]).clamp_min(0.0)
        return (back.flatten()[: values.numel()].view(values.shape),)

    def _rows(self, x: Tensor) -> Tensor:
        """Return one number per tile as ``[groups, group]``, zeros at the end."""
        flat = x.flatten()
        return F.pad(flat, (0, -len(flat) % self.group)).view(-1, self.group)

    @property
    def in_order(self) -> bool:
        """Whether tiles are counted through: yes."""
        return True

    def total_bits(self, tiles: int) -> int:
        """Codes, one float32 per group, and the mean where one is taken off."""
        return tiles * self.bits + 32 * (-(-tiles // self.group) + self.centred)

    def __str__(self) -> str:
        return f"{self.format}+fp32x{self.group}" + ("-mean" if self.centred else "")
