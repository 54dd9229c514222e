"""Inputs of linear layers whose codes compiled code makes again in the backward pass."""

from dataclasses import dataclass, replace

from torch import nn

from narrowcast.nn.change import Change
from narrowcast.nn.linear import Linear


@dataclass(frozen=True)
class Remade(Change):
    """Let the codes of these layers' inputs be made again (`LinearSpec.remade`) instead of being kept.

    For layers behind a norm or a gated unit that keeps its own input: theirs follows from that elementwise. And for the
    one behind attention, which keeps its output itself: that is kept once where it lies token by token, in memory
    ``[B, T, H, D]`` (FlashAttention-4's and the memory-efficient kernel's; others' where queries lie so, as those of
    transformers do). Where it lies head by head, the compiler keeps a copy: 2 bytes an element, where codes take 1.

    Attributes:
        layers: their names in the module that holds them.
        alive: those whose wide input lives anyway.
    """

    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    alive: tuple[str, ...] = ("o_proj",)

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`; the module that holds the layers itself stays."""
        words = dict.fromkeys(self.layers, "x") | dict.fromkeys(self.alive, "x-alive")
        found = [(c, words[part]) for part, c in module.named_children() if part in words and isinstance(c, Linear)]
        for layer, word in found:
            if not layer.spec.remakes("x"):
                layer.spec = replace(layer.spec, remade=(*layer.spec.remade, word))
        return module if found else None

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return "narrow layer called " + ", ".join((*self.layers, *self.alive))

    def __str__(self) -> str:
        names = ", ".join((*self.layers, *self.alive))
        return f"codes of the inputs of {names} made again, not kept, where compiled"
