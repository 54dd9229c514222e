"""What a model's cache of keys and values becomes, on its way to a file: one entry an attention module."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import format
from narrowcast.quantize import Cast, cast
from narrowcast.scaling import TENSOR, Divided


@dataclass(frozen=True)
class CacheSpec:
    """What the keys and values of one attention module are cached as.

    Attributes:
        module: name of the attention module.
        key, value: casts along the head dimension, or None for wide ones.
        static: whether the scales are calibrated, one a tensor; the casts then have them fixed, once they are known.
        ordered: whether the channels of keys are in an order of their own.
    """

    module: str
    key: Cast | None
    value: Cast | None
    static: bool = False
    ordered: bool = False

    @property
    def words(self) -> str:
        """What becomes of both, in words; calibrated scales, which differ by module, are left out."""
        names = [str(c.format if self.static else c).removesuffix("/nearest-even") if c else "wide"
                 for c in (self.key, self.value)]  # fmt: skip
        if self.key == self.value or (self.static and names[0] == names[1]):
            return f"keys and values {names[0]}" + (", scales calibrated" if self.static else "")
        return f"keys {names[0]}{', channels in order' if self.ordered else ''}; values {names[1]}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, casts as their spellings; `from_json` reads them back."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**row, **{key: None if row[key] is None else str(row[key]) for key in ("key", "value")}}

    @staticmethod
    def from_json(row: dict[str, Any]) -> "CacheSpec":
        """Return the spec that `to_json` wrote; InputError for casts that do not parse, KeyError for missing fields."""
        values = {f.name: row[f.name] for f in fields(CacheSpec)}
        return CacheSpec(**{**values, **{k: None if row[k] is None else cast(row[k]) for k in ("key", "value")}})


@dataclass(frozen=True, eq=False)
class CacheLayer:
    """The cache of one attention module, settled.

    Attributes:
        spec: what it became.
        order: the order of the channels of each of its G key heads, int64 ``[G, D]``, where it has one.
    """

    spec: CacheSpec
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.spec.ordered != (self.order is not None):
            raise InputError(f"{self.spec.module}: its cache is ordered or has no order, found {self.order}")


def cached_in_fp8(peaks: Mapping[str, tuple[float, float]], carrier: str) -> list[CacheLayer]:
    """Return a cache in E4M3 under one scale for keys and one for values.

    Args:
        peaks: largest magnitudes of the cached keys (after their rotary embedding) and values, by attention module.
        carrier: dtype of the model as `Divided` calls it.
    """
    fmt = format("e4m3fn")

    def under(amax: float) -> Cast:
        return Cast(fmt, TENSOR, Divided(carrier).made_for(amax, fmt))

    return [CacheLayer(CacheSpec(m, under(keys), under(values), static=True)) for m, (keys, values) in peaks.items()]


def fixed_scale(made: Cast, dtype: torch.dtype) -> Tensor:
    """Return the calibrated scale of a static cast, ``[1]`` in ``dtype``."""
    assert isinstance(made.scale, Divided)
    assert made.scale.fixed is not None
    return torch.tensor([made.scale.fixed], dtype=dtype)
