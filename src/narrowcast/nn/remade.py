"""Inputs of linear layers whose codes compiled code makes again in the backward pass."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from narrowcast.nn.change import Change
from narrowcast.nn.linear import Linear


@dataclass(frozen=True)
class Remade(Change):
    """Let the codes of these layers' inputs be made again (`LinearSpec.remade`) instead of being kept.

    For layers behind a norm or a gated unit that keeps its own input: theirs follows from that elementwise. Not behind
    attention: its output would be kept once more, wide.

    Attributes:
        layers: glob patterns of their names.
    """

    layers: tuple[str, ...] = ("*q_proj", "*k_proj", "*v_proj", "*gate_proj", "*up_proj", "*down_proj")

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`; the layer itself stays."""
        if not isinstance(module, Linear) or not any(fnmatchcase(name, pattern) for pattern in self.layers):
            return None
        if "x" not in module.spec.remade:
            module.spec = replace(module.spec, remade=(*module.spec.remade, "x"))
        return module

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return "narrow layer called " + ", ".join(self.layers)

    def __str__(self) -> str:
        return "codes of the input made again for the backward pass, where compiled"
