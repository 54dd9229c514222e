"""Quantized layers on their way to a file: what a pipeline produces and a layout writes.

A *layout* is a convention of names, dtypes and packing (narrowcast's own, compressed-tensors', ...). It sees one layer
at a time, so that a model need never be in memory as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer, CacheSpec
from narrowcast.quantize import Cast, QTensor, cast
from narrowcast.transforms import Hadamard, transform


@dataclass(frozen=True)
class LayerSpec:
    """What one weight becomes, known before any work.

    Attributes:
        name: of the parameter, e.g. ``model.layers.0.mlp.up_proj.weight``.
        module: name of the module that holds it.
        kind: ``Linear``, ``Conv1D``, ``Conv2d`` or ``experts``.
        shape: (N, K) of each of its matrices, K the contraction axis.
        count: how many matrices: the experts of a fused 3-D weight, else 1.
        stored: shape of the parameter in the model.
        transposed: whether the model holds its matrices as ``[K, N]`` (GPT-2's Conv1D, some experts).
        weight: cast of the matrices, rotated before where there is a transform.
        activation: cast of the input, or None for a wide one.
        transform: rotation of K on both sides, or None.
        static: whether the input's scale is that of the calibration.
        group: name of the first of the weights that share its input (q, k and v; gate and up): they share what is
            stored once per tensor.
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, int]
    count: int
    stored: tuple[int, ...]
    transposed: bool
    weight: Cast
    activation: Cast | None = None
    transform: Hadamard | None = None
    static: bool = False
    group: str = ""

    @property
    def elements(self) -> int:
        """Numbers in all matrices."""
        return self.count * self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales of all matrices, as `QTensor.nbytes` counts them."""
        rows, columns = self.weight.padded_shape(self.shape, self.name)
        codes = rows * -(-columns * self.weight.format.bits // 8)
        scales = self.weight.scale.total_bits(self.weight.tile.count((rows, columns)))
        return self.count * (codes + -(-scales // 8))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, casts as their spellings; `from_json` reads them back."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        texts = {key: None if row[key] is None else str(row[key]) for key in ("weight", "activation", "transform")}
        return {**row, **texts, "shape": list(self.shape), "stored": list(self.stored)}

    @staticmethod
    def from_json(row: dict[str, Any]) -> "LayerSpec":
        """Return the spec that `to_json` wrote; InputError for casts that do not parse, KeyError for missing fields."""
        values = {f.name: row[f.name] for f in fields(LayerSpec)}
        casts = {key: None if row[key] is None else cast(row[key]) for key in ("weight", "activation")}
        turn = {"transform": None if row["transform"] is None else transform(row["transform"])}
        shapes = {"shape": (int(row["shape"][0]), int(row["shape"][1])), "stored": tuple(row["stored"])}
        return LayerSpec(**{**values, **casts, **turn, **shapes})


@dataclass(frozen=True)
class QuantizedLayer:
    """One weight, quantized.

    Attributes:
        spec: what it became.
        matrices: codes and scales of each matrix ``[N, K]``, in the rotated and balanced basis.
        input_amax: largest magnitude of the input (rotated) on the calibration rows, shared by the group; None where no
            row was seen.
    """

    spec: LayerSpec
    matrices: tuple[QTensor, ...]
    input_amax: float | None = None

    def __post_init__(self) -> None:
        if len(self.matrices) != self.spec.count or any(q.shape != self.spec.shape for q in self.matrices):
            found = [q.shape for q in self.matrices]
            raise InputError(f"{self.spec.name}: matrices {found}, expected {self.spec.count} of {self.spec.shape}")


class Layout(Protocol):
    """A convention of quantized checkpoints."""

    @property
    def name(self) -> str:
        """Its name, as `save_pretrained` takes it."""

    def for_model(self, model: nn.Module, specs: Sequence[LayerSpec], dtype: torch.dtype) -> "Layout":
        """Return the layout with what it must know of a model (which may be on the meta device): names and dtype."""

    def casts(self, weight: Cast, activation: Cast | None, static: bool) -> tuple[Cast, Cast | None, bool]:
        """Return what its loaders compute in place of these casts, and whether the input's scale must be static."""

    def refusal(self, spec: LayerSpec) -> str:
        """Return why the layout cannot hold such a layer, or an empty string."""

    def cache_casts(self, key: Cast | None, value: Cast | None) -> tuple[Cast | None, Cast | None]:
        """Return what its loaders compute in place of these casts of cached keys and values."""

    def cache_refusal(self, spec: CacheSpec) -> str:
        """Return why the layout cannot hold such a cache of keys and values, or an empty string."""

    def tensors(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        """Return what is stored for ``layer``, by full tensor name."""

    def cache_tensors(self, layer: CacheLayer) -> dict[str, Tensor]:
        """Return what is stored for the cache of one attention module, by full tensor name."""

    def wide(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that are stored for parameters that stay as they are, by name."""

    def config(
        self, specs: Sequence[LayerSpec], wide: Sequence[str], cache: Sequence[CacheSpec] = ()
    ) -> dict[str, Any]:
        """Return config.json's ``quantization_config``: ``specs`` are narrow, the modules named in ``wide`` are not.

        ``cache`` says what cached keys and values become, where they are narrowed.
        """

    def notes(self, specs: Sequence[LayerSpec], cache: Sequence[CacheSpec] = ()) -> list[str]:
        """Return what loaders do otherwise than the model in memory."""


#: attributes of a model that was quantized in memory: its tuples of `QuantizedLayer` and of `CacheLayer`
_ATTRIBUTE, _CACHE = "narrowcast_layers", "narrowcast_cache"


def remember(model: Any, layers: Sequence[QuantizedLayer], cache: Sequence[CacheLayer] = ()) -> None:
    """Attach ``layers`` and ``cache`` to a model that was quantized in place, for whoever saves it."""
    setattr(model, _ATTRIBUTE, tuple(layers))
    setattr(model, _CACHE, tuple(cache))


def remembered(model: Any) -> tuple[QuantizedLayer, ...]:
    """Return the layers of a model that was quantized in memory; InputError where it was not."""
    layers: tuple[QuantizedLayer, ...] | None = getattr(model, _ATTRIBUTE, None)
    if layers is None:
        raise InputError("the model carries no quantized layers; quantize it first (nc.ptq.quantize_model)")
    return layers


def remembered_cache(model: Any) -> tuple[CacheLayer, ...]:
    """Return what the cache of a model that was quantized in memory became; empty where it stays wide."""
    found: tuple[CacheLayer, ...] = getattr(model, _CACHE, ())
    return found
