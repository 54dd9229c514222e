"""Names of weights in a checkpoint, where a model's own differ.

A fused weight of experts is one 3-D parameter in the model, and one matrix per expert and projection in the files that
other tools load. `transformers` knows the way back (it goes it when it saves); asked with numbers in place of weights,
it tells which rows of which expert become which tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.quantized import LayerSpec


@dataclass(frozen=True)
class Piece:
    """Rows of one matrix of a parameter that stand under one name in a checkpoint.

    Attributes:
        module: name there, without ``.weight``.
        matrix: number of the matrix.
        start, stop: its rows.
    """

    module: str
    matrix: int
    start: int
    stop: int


@dataclass(frozen=True)
class Naming:
    """What a checkpoint calls the weights of a model.

    Attributes:
        pieces: of the parameters that it splits, by their name in the model.
        model: knows all other names; None where a checkpoint has the model's own.
    """

    pieces: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    model: nn.Module | None = None

    def of(self, spec: LayerSpec) -> tuple[Piece, ...]:
        """Return the pieces of a layer; InputError where its experts have no names."""
        if spec.name in self.pieces:
            return self.pieces[spec.name]
        if spec.kind == "experts":
            raise InputError(f"{spec.name}: the names of single experts are not known; layout 'narrowcast' needs none")
        return (Piece(self.module(spec.module), 0, 0, spec.shape[0]),)

    def module(self, name: str) -> str:
        """Return the checkpoint's name of a module."""
        return name if self.model is None else checkpoint_name(self.model, name)


def naming_of(model: nn.Module, specs: Sequence[LayerSpec]) -> Naming:
    """Return how a checkpoint of ``model`` names its weights, which may be on the meta device.

    Raises InputError where a checkpoint holds experts in a way that rows cannot be told apart.
    """
    if not hasattr(model, "_weight_conversions") and not hasattr(model, "config"):
        return Naming()
    experts = {s.name: s for s in specs if s.kind == "experts"}
    pieces: dict[str, tuple[Piece, ...]] = {}
    for name, spec in experts.items():
        pieces[name] = _pieces(spec, reverted(model, {name: _numbers(spec)}))
    return Naming(pieces, model)


def reverted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model under the names, and in the shapes, that its checkpoints have."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, dict(state))
    return found


def checkpoint_name(model: nn.Module, module: str) -> str:
    """Return the checkpoint's name of a module of ``model``."""
    (name,) = reverted(model, {f"{module}.weight": torch.zeros(2, 2)})
    return name.removesuffix(".weight")


def _numbers(spec: LayerSpec) -> Tensor:
    """Return a small stand-in for fused experts: every row is filled with its number, counted over all experts."""
    rows = torch.arange(spec.count * spec.shape[0]).view(spec.count, spec.shape[0], 1).expand(-1, -1, 2)
    return rows.mT if spec.transposed else rows


def _pieces(spec: LayerSpec, found: dict[str, Any]) -> tuple[Piece, ...]:
    pieces = []
    for name, tensor in found.items():
        if tensor.dim() != 2:
            raise InputError(f"{spec.name}: its checkpoints keep experts fused; layout 'narrowcast' can hold them")
        rows = tensor[:, 0]
        first, count = int(rows[0]), len(rows)
        matrix, start = divmod(first, spec.shape[0])
        if not torch.equal(rows, torch.arange(first, first + count)) or start + count > spec.shape[0]:
            raise InputError(f"{spec.name}: its checkpoints mix the rows of experts; layout 'narrowcast' can hold them")
        pieces.append(Piece(name.removesuffix(".weight"), matrix, start, start + count))
    return tuple(sorted(pieces, key=lambda p: (p.matrix, p.start)))
