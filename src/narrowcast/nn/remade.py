"""Inputs of linear layers whose codes compiled code makes again in the backward pass."""

from dataclasses import dataclass, replace

from torch import nn

from narrowcast.nn.change import Change
from narrowcast.nn.linear import Linear


@dataclass(frozen=True)
class Remade(Change):
    """Let the codes of these layers' inputs be made again (`LinearSpec.remade`) instead of being kept.

    For layers behind a norm or a gated unit that keeps its own input: theirs follows from that elementwise. Not behind
    attention: its output would be kept once more, wide.

    Attributes:
        layers: their names in the module that holds them.
    """

    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`; the module that holds the layers itself stays."""
        found = [child for part, child in module.named_children() if part in self.layers and isinstance(child, Linear)]
        for layer in found:
            if "x" not in layer.spec.remade:
                layer.spec = replace(layer.spec, remade=(*layer.spec.remade, "x"))
        return module if found else None

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return "narrow layer called " + ", ".join(self.layers)

    def __str__(self) -> str:
        return f"codes of the inputs of {', '.join(self.layers)} made again, not kept, where compiled"
