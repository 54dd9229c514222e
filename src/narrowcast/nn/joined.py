"""A norm and what it feeds as one module, in every block of a converted model: what such changes share."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.nn.change import Change
from narrowcast.nn.linear import Linear
from narrowcast.nn.norm import eps_of
from narrowcast.nn.spec import PAIRS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.quantize import Cast

_NORMS = ("input_layernorm", "post_attention_layernorm")


class Passing(nn.Module):
    """A norm whose work another module does: it keeps the weight under its name, and passes ``x`` on."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = source.weight, eps_of(source)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


@dataclass(frozen=True)
class Joined(Change):
    """Join a norm and the linear layers of the unit that it feeds (Llama's names); the block itself stays.

    Attributes:
        norm, unit: names of the two modules within a block.
        parts: names of the layers within the unit.
        what: norm and unit, in words.
    """

    norm: str
    unit: str
    parts: ClassVar[tuple[str, ...]]
    what: ClassVar[str]

    @abstractmethod
    def join(self, block: nn.Module, unit: nn.Module, layers: list[Linear], norm: Passing, backend: str) -> None:
        """Put what joins them into ``block``; ``norm`` takes the norm's place afterwards."""

    def objection(self, unit: nn.Module, layers: list[Linear]) -> str | None:
        """Return what else stands against joining, or None."""
        return None

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`."""
        norm, unit = getattr(module, self.norm, None), getattr(module, self.unit, None)
        if norm is None or unit is None or not type(norm).__name__.endswith("RMSNorm"):
            return None
        layers: list[Any] = [getattr(unit, part, None) for part in self.parts]
        if not isinstance(layers[0], Linear):
            return None
        why = _unlike(layers) or against(layers[0].spec) or _other_block(module, norm) or self.objection(unit, layers)
        if why:
            raise InputError(f"block {name!r}: {self.what} cannot be one: {why}; take the recipe without '+joined'")
        passing = Passing(norm)
        self.join(module, unit, layers, passing, backend)
        setattr(module, self.norm, passing)
        return module

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return f"block with {self.norm} and {self.unit} of narrow {', '.join(self.parts)}"


def against(spec: LinearSpec) -> str | None:
    """Return what speaks against joining layers of ``spec`` with a norm, or None."""
    if any(gemm.transform is not None for gemm in (spec.fwd, spec.dgrad, spec.wgrad)):
        return "a gemm rotates its operands"
    for first, second in PAIRS.values():
        one, other = spec.operand(first), spec.operand(second)
        assert isinstance(one, Cast)
        if isinstance(other, Reuse) and (other.then is not None or one.tile.rows == 1 or one.format.bits != 8):
            return f"operand {second} reuses codes that cannot be turned"
        if isinstance(other, Cast) and other.scale.delayed is not None:
            return f"operand {second} keeps a history of its own"
    return None


def _unlike(layers: list[Any]) -> str | None:
    """Return what stands against layers as one of more outputs (one that follows them aside), or None."""
    first = layers[0]
    if any(not isinstance(layer, Linear) or layer.spec != first.spec for layer in layers):
        return "its three layers are not narrowed alike"
    same = [layer for layer in layers if layer.in_features == first.in_features]
    return "layers of one input have different factors" if len({layer.alpha for layer in same}) > 1 else None


def _other_block(block: nn.Module, norm: nn.Module) -> str | None:
    """Return why the norms of ``block`` do not stand as Llama's, each before the one unit that it feeds, or None."""
    others = [name for name, _ in block.named_children() if name.endswith("norm") and name not in _NORMS]
    if others:
        return f"the block has another norm, {others[0]}"
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta:  # a model without numbers, for a plan of what would run
        return None
    x = torch.linspace(-2, 3, len(weight), device=weight.device).to(weight.dtype)
    with torch.no_grad():
        found, plain = norm(x[None])[0].float(), F.rms_norm(x.float(), x.shape, weight.float(), eps_of(norm))
    near = (found - plain).norm() <= 0.02 * plain.norm()
    return None if bool(near) else f"{type(norm).__name__} is not x / rms(x) times its weight"
