"""Which layers hurt: each layer of A is replaced by B's, alone, and the predictions say what that costs.

A layer's inputs are then exactly A's, so the noise of its outputs is its own (its SQNR), and the divergence of the
predictions is what it does to the model. Where B moved factors between layers (SmoothQuant, AWQ: a norm or a bias-like
vector differs too), a layer alone means nothing, and whole blocks are replaced instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.loss import decibels
from narrowcast.errors import InputError
from narrowcast.metrics import kl_divergence
from narrowcast.ptq.blocks import find_blocks

#: runs a model on the data and returns its logits ``[..., classes]``, one tensor per batch
Logits = Callable[[nn.Module], list[Tensor]]


@dataclass(frozen=True)
class LayerDamage:
    """What one layer (or block) of B does to A.

    Attributes:
        name: of the module.
        sqnr_db: signal to noise of its outputs, in dB, on A's own inputs; None where nothing changed.
        divergence: mean KL divergence of A's predictions when this layer alone is B's, in nats.
    """

    name: str
    sqnr_db: float | None
    divergence: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@torch.no_grad()
def layer_damage(a: nn.Module, b: nn.Module, logits: Logits) -> tuple[list[LayerDamage], str]:
    """Return what each layer that differs costs, worst first, and what was replaced (``layers`` or ``blocks``).

    Args:
        a, b: models of one architecture; both are left as they were.
        logits: runs a model; a few batches are enough.
    """
    changed, what = differing(a, b)
    wide = logits(a)
    count = sum(one[..., 0].numel() for one in wide)
    found = []
    for name in changed:
        with _replaced(a, name, b.get_submodule(name)) as noise:
            off = sum(float(kl_divergence(x, y).sum()) for x, y in zip(wide, logits(a), strict=True))
        found.append(LayerDamage(name, decibels(noise.signal, noise.noise), off / count))
    return sorted(found, key=lambda one: -one.divergence), what


def differing(a: nn.Module, b: nn.Module) -> tuple[list[str], str]:
    """Return the names of the modules that hold matrices and differ (or of the blocks, see above), and which it is."""
    theirs = dict(b.named_modules())
    layers, vectors = [], False
    for name, module in a.named_modules():
        if not name or not (own := dict(module.named_parameters(recurse=False))):
            continue
        if name not in theirs:
            raise InputError(f"the second model has no module {name!r}; expected two models of one architecture")
        other = dict(theirs[name].named_parameters(recurse=False))
        matrices = any(p.dim() > 1 for p in own.values())
        if matrices and (_differ(own, other) or "input_cast" in dict(theirs[name].named_children())):
            layers.append(name)
        elif not matrices and _differ(own, other):
            vectors = True
    if not vectors:
        return layers, "layers"
    prefix, blocks = find_blocks(a)
    if not prefix:
        return [], "nothing: factors were moved between layers, and the model has no like blocks"
    return [f"{prefix}.{i}" for i in range(len(blocks))], "blocks"


def _differ(own: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> bool:
    if any(name not in other or other[name].shape != p.shape for name, p in own.items()):
        raise InputError("the two models have parameters of different shapes; expected two models of one architecture")
    return any(not torch.equal(p, other[name].to(p)) for name, p in own.items())


@dataclass
class _Noise:
    signal: float = 0.0
    noise: float = 0.0
    wide: Tensor | None = None  # what A's own module makes of the input at hand


@contextmanager
def _replaced(model: nn.Module, name: str, other: nn.Module) -> Iterator[_Noise]:
    """Let ``other`` stand in the place of module ``name``; sum up how its outputs differ."""
    parent, _, leaf = name.rpartition(".")
    own, holder, found = model.get_submodule(name), model.get_submodule(parent), _Noise()

    def run_own(module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch.no_grad():  # before the other module's own hooks narrow what it is given
            found.wide = _first(own(*args, **kwargs)).double()

    def note(module: nn.Module, args: Any, out: Any) -> None:
        assert found.wide is not None
        found.signal += float(found.wide.square().sum())
        found.noise += float((_first(out).double() - found.wide).square().sum())

    handles = [
        other.register_forward_pre_hook(run_own, prepend=True, with_kwargs=True),
        other.register_forward_hook(note),
    ]
    setattr(holder, leaf, other)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        setattr(holder, leaf, own)


def _first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found
