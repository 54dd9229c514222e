"""Kept as codes and scales of a cast."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import NEAREST_EVEN, Stream
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import One
from narrowcast.scaling.numbers import ONE
from narrowcast.storage.storage import Storage, Stored

#: formats whose codes are kept in torch's own dtype: readable, and what a parameter of that dtype can hold itself
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Coded(Storage):
    """Codes and scales of a cast over the flat tensor: parts ``codes`` and, under a scale, ``scales``.

    Codes are bytes, packed where a code has fewer than 8 bits; those of float32, bfloat16 and float16 have that dtype.
    """

    cast: Cast

    def __post_init__(self) -> None:
        cast, tile = self.cast, self.cast.tile
        if cast.transform is not None or cast.scale.delayed is not None or cast.scale.tensor_bits:
            raise InputError(f"storage {cast}: what is kept has no transform, no history and no second level of scales")
        if cast.scale.numbers is not ONE:
            raise InputError(f"storage {cast}: what is kept has one number a tile")
        if not (tile.is_tensor or (tile.rows == 1 and tile.pad and not self._bare)):
            raise InputError(
                f"storage {cast}: tensors of any shape are kept as flat ones: expected the tile 'tensor', or 1xN+pad "
                f"with a scale, found {tile}"
            )

    def store(self, x: Tensor, stream: Stream | None = None) -> Stored:
        """Return ``codes`` and ``scales``."""
        if self.dtype is not None and self.cast.rounding is NEAREST_EVEN:
            return self._converted(x, self.dtype)
        q = self.cast.quantize(x, stream)
        codes = q.codes.view(self.dtype) if self.dtype is not None else q.codes
        return {"codes": codes} if self._bare else {"codes": codes, "scales": q.scales.flatten()}

    def _converted(self, x: Tensor, dtype: torch.dtype) -> Stored:
        """Return the same by torch's own conversion, which is IEEE's for these types: a tenth of the time."""
        if self._bare:
            return {"codes": x.to(dtype, copy=True)}
        scale = self.cast.settle(x).scale
        blocks, _ = self.cast.tile.blocks(self.cast.tile.padded(x))
        return {"codes": scale.enter(blocks).to(dtype).flatten(), "scales": scale.stored.flatten()}

    def load(self, stored: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the values."""
        codes = stored["codes"]
        if self._bare and self.dtype is not None:
            return codes.to(self.dtype).float()
        padded = self.cast.padded_shape((count,))
        if self.cast.tile.is_tensor:
            scales = codes.new_ones(1, dtype=torch.float32) if self._bare else stored["scales"]
        else:
            scales = stored["scales"].view(-1, 1)
        if self.dtype is not None:
            blocks, _ = self.cast.tile.blocks(codes.float())
            for factor in self.cast.scale.restore(scales, None):
                blocks = blocks.mul_(factor)
            return blocks.reshape(-1)[:count]
        packed = codes.view(torch.uint8)
        return QTensor(packed, scales, None, self.cast, (count,), padded, torch.float32).dequantize()

    def bits_per_element(self, count: int) -> float:
        """Return the cast's."""
        return self.cast.bits_per_element((count,))

    @property
    def random(self) -> bool:
        """Whether the cast draws random bits."""
        return self.cast.random

    def carried(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Return ``codes`` where there is no scale and ``dtype`` has the format's values."""
        fits = self._bare and self.dtype is not None and dtype in (self.dtype, torch.float32)
        return ("codes",) if fits else ()

    @property
    def dtype(self) -> torch.dtype | None:
        """torch's dtype of the codes, or None where they are bytes."""
        return DTYPES.get(self.cast.format.name)

    @property
    def _bare(self) -> bool:
        return isinstance(self.cast.scale, One)

    def __str__(self) -> str:
        return str(self.cast)
