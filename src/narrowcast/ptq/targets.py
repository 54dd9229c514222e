"""The weights that post-training quantization narrows, each seen as one or more matrices ``[N, K]``, K last.

A linear layer is one matrix, a convolution is one of ``[out, in * kernel]``, GPT-2's Conv1D holds its matrix
transposed, and the fused experts of a mixture are one matrix each in a 3-D parameter. Everything else works on
matrices alone.
"""

import fnmatch
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.quantized import LayerSpec
from narrowcast.nn.convert import KEEP_WIDE
from narrowcast.ptq.recipe import PtqRecipe


@dataclass(frozen=True)
class Target:
    """One weight to be narrowed.

    Attributes:
        name: of the parameter in the model, e.g. ``model.layers.0.mlp.up_proj.weight``.
        module: name of the module that holds it.
        kind: ``Linear``, ``Conv1D``, ``Conv2d`` or ``experts``.
        weight: the parameter.
        transposed: whether the layer holds its matrices as ``[K, N]``.
    """

    name: str
    module: str
    kind: str
    weight: nn.Parameter
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of each matrix."""
        rows, columns = self.matrices()[0].shape
        return int(rows), int(columns)

    def matrices(self) -> list[Tensor]:
        """Return the weight's matrices ``[N, K]``, as views where the layout allows it."""
        weight = self.weight.detach()
        found = list(weight.unbind(0)) if self.kind == "experts" else [weight.flatten(1)]
        return [matrix.mT for matrix in found] if self.transposed else found

    @torch.no_grad()
    def write(self, values: list[Tensor]) -> None:
        """Put matrices in the place of the old ones, in the weight's dtype."""
        for place, value in zip(self.matrices(), values, strict=True):
            place.copy_(value.view_as(place))


@dataclass(frozen=True)
class Kept:
    """A weight of two or more axes that stays wide, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    why: str


def find_targets(model: nn.Module, keep_wide: tuple[str, ...] = KEEP_WIDE) -> tuple[list[Target], list[Kept]]:
    """Return the weights to be narrowed, in the model's order, and those that stay wide.

    ``keep_wide`` holds glob patterns of module names; one beyond the default that matches nothing is an InputError, and
    so is a model where nothing is left to narrow.
    """
    names = [name for name, _ in model.named_modules()]
    for pattern in keep_wide:
        if pattern not in KEEP_WIDE and not any(fnmatch.fnmatch(name, pattern) for name in names):
            raise InputError(f"pattern {pattern!r} matches no module of the model; see model.named_modules()")
    targets: list[Target] = []
    kept: list[Kept] = []
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2:
                continue
            full = f"{name}.{parameter}" if name else parameter
            kind = _kind(module, parameter, weight)
            why = _why_kept(full, name, module, kind, keep_wide, seen.get(id(weight)))
            seen[id(weight)] = full
            if why is None and kind is not None:
                turned = kind == "Conv1D" or bool(getattr(module, "is_transposed", False))
                targets.append(Target(full, name, kind, weight, turned))
            else:
                kept.append(Kept(full, kind or type(module).__name__, tuple(weight.shape), why or ""))
    if not targets:
        raise InputError(f"no weight of the model is to be narrowed (kept wide: {', '.join(keep_wide)})")
    return targets, kept


def _kind(module: nn.Module, parameter: str, weight: Tensor) -> str | None:
    if isinstance(module, nn.Linear) and parameter == "weight":
        return "Linear"
    if isinstance(module, nn.Conv2d) and parameter == "weight":
        return "Conv2d"
    if type(module).__name__ == "Conv1D" and parameter == "weight" and weight.dim() == 2:
        return "Conv1D"
    return "experts" if weight.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd) else None


def _why_kept(
    full: str, name: str, module: nn.Module, kind: str | None, keep_wide: tuple[str, ...], same_as: str | None
) -> str | None:
    for pattern in keep_wide:
        if fnmatch.fnmatch(name, pattern):
            return f"kept wide by rule {pattern!r}"
    if same_as is not None:
        return f"tied to {same_as}"
    if isinstance(module, nn.Embedding):
        return "a table look-up, no product"
    return f"{type(module).__name__} holds no matrix of a kind that is known" if kind is None else None


def spec_of(target: Target, recipe: PtqRecipe, group: str) -> LayerSpec:
    """Return what ``target`` becomes under ``recipe``, as one of the weights of ``group``."""
    scheme = recipe.scheme
    matrices = target.matrices()
    return LayerSpec(
        target.name, target.module, target.kind, target.shape, len(matrices), tuple(target.weight.shape),
        target.transposed, scheme.weight, scheme.activation, scheme.transform, scheme.static, group,
    )  # fmt: skip
