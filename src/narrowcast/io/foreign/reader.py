"""What reading a quantized checkpoint takes, whatever its layout: one row a layout (`table`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.quantize import Cast, QTensor
from narrowcast.transforms import Hadamard


@dataclass(frozen=True)
class ReadWeight:
    """One weight of a quantized checkpoint.

    Attributes:
        quantized: codes and scales, where a cast expresses them exactly; else None.
        dense: the values, float32, where none does (columns in another order); else None.
        activation: cast of the input (with its scale fixed where the checkpoint fixes it), or None for a wide one.
        transform: rotation of K that the input needs, or None.
        parameter: name in the model, where it is not the module's ``weight``.
    """

    quantized: QTensor | None = None
    dense: Tensor | None = None
    activation: Cast | None = None
    transform: Hadamard | None = None
    parameter: str = ""

    def values(self) -> Tensor:
        """Return the weight (``[N, K]``, or as the model holds it), float32, before any rotation is undone."""
        if self.dense is not None:
            return self.dense
        assert self.quantized is not None
        return replace(self.quantized, dtype=torch.float32).dequantize()


@dataclass(frozen=True)
class Reader:
    """How the weights of one checkpoint are read.

    Attributes:
        layout: name of its layout.
        formats: what its weights are, in words, e.g. ``int4 in groups of 128 with zero points``.
        suffixes: of the tensors that stand for one weight, behind the module's name, the first being its codes.
        required: those that must be there for a module to count as quantized.
        read: (module, tensors by suffix) -> weight.
    """

    layout: str
    formats: str
    suffixes: tuple[str, ...]
    required: tuple[str, ...]
    read: Callable[[str, dict[str, Tensor]], ReadWeight]

    def parts(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return, by module, the full names of the tensors that stand for its weight, by suffix."""
        found: dict[str, dict[str, str]] = {}
        longest = sorted(self.suffixes, key=len, reverse=True)
        for name in names:
            suffix = next((s for s in longest if name.endswith(f".{s}")), None)
            if suffix is not None:
                found.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = name
        return {module: parts for module, parts in found.items() if all(s in parts for s in self.required)}


#: (quantization_config, names of all tensors) -> how to read them; None where the checkpoint has another layout
Open = Callable[[dict[str, Any], frozenset[str]], Reader | None]


def shaped(tensor: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """Return ``tensor``; InputError where it has another shape than ``shape``."""
    if tuple(tensor.shape) != shape:
        raise InputError(f"{what}: shape {tuple(tensor.shape)}, expected {shape}; the checkpoint is damaged")
    return tensor
