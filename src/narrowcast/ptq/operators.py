"""Operators that are no products, quantized too: normalisations, additions and multiplications see narrow inputs.

The *extended scheme* of FP8 inference: a whole network runs narrow, not its matrices alone. Modules get an `InputCast`
like any layer; additions and multiplications between tensors, which no module owns, are met by a function mode around
the whole forward pass. An operand that is cast already is not cast again.
Source: Shen et al. 2024, "Efficient Post-training Quantization with FP8 Formats", section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from narrowcast.errors import InputError
from narrowcast.ptq.inputs import InputCast, attach
from narrowcast.quantize import Cast

_ADDS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
_MULTIPLIES = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the normalisations of ``model`` by name: modules whose class name says Norm and that hold a weight."""
    return {
        name: module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor)
    }


@torch.no_grad()
def narrow_norms(model: nn.Module, cast: Cast, forwards: Sequence[Callable[[], object]] = ()) -> list[str]:
    """Let the normalisations of ``model`` see their inputs through ``cast``, in place; return their names.

    Args:
        model: changed in place; a normalisation that is narrow already is refused.
        cast: of the inputs; with a tile ``tensor`` and ``forwards`` its scale is calibrated and stays.
        forwards: each runs the model on one calibration batch; without any, scales are made anew for each input.
    """
    found = norms(model)
    if not found:
        raise InputError(f"{type(model).__name__} has no normalisation with a weight to narrow")
    peaks = _peaks(found, forwards) if forwards and cast.tile.is_tensor else {}
    for name, module in found.items():
        if hasattr(module, "input_cast"):
            raise InputError(f"the input of {name} is narrow already")
        attach(module, InputCast(cast, amax=peaks.get(name)))
    return list(found)


def _peaks(modules: dict[str, nn.Module], forwards: Sequence[Callable[[], object]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            peak = args[0].detach().abs().amax().float()
            found[name] = torch.maximum(found[name], peak) if name in found else peak

        return note

    handles = [module.register_forward_pre_hook(noting(name)) for name, module in modules.items()]
    try:
        for forward in forwards:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


class Elementwise(TorchFunctionMode):
    """While entered, sums and products of two tensors of two or more axes see both through ``cast``.

    Scales are made anew each time. Biases, broadcast vectors and numbers stay as they are, and so does the arithmetic
    of the casts themselves.
    """

    def __init__(self, cast: Cast) -> None:
        super().__init__()
        self.cast = cast
        self.met = 0
        self._casting = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "Elementwise":
        """Meet operations from now on."""

        def begin(module: nn.Module, args: Any) -> None:
            self._casting += isinstance(module, InputCast)

        def end(module: nn.Module, args: Any, out: Any) -> None:
            self._casting -= isinstance(module, InputCast)

        self._hooks = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *why: Any) -> None:
        """Meet no more."""
        super().__exit__(*why)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._casting = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on narrow operands where it is one of those."""
        if not self._casting and (func in _ADDS or func in _MULTIPLIES):
            a, b = args[0], args[1] if len(args) > 1 else None
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dim() > 1:
                self.met += 1
                plain = torch.add if func in _ADDS else torch.mul
                return plain(self._narrow(a), self._narrow(b), **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _narrow(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return self.cast.apply(x.reshape(-1, x.shape[-1]), what="operand").view(x.shape).to(x.dtype)


@torch.no_grad()
def recalibrate(model: nn.Module, forwards: Sequence[Callable[[], object]]) -> int:
    """Estimate the running means and variances of batch normalisations anew, in place; return how many there are.

    What quantization shifted in a layer's outputs, its normalisation takes out again. The plain mean over the batches
    of ``forwards``; every other module stays in evaluation mode.
    """
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not forwards:
        raise InputError("batch normalisation is calibrated on data; give some forward passes")
    kept = [(m.momentum, m.training) for m in found]
    for module in found:
        module.reset_running_stats()
        module.momentum, module.training = None, True  # None: the mean of all batches
    try:
        for forward in forwards:
            forward()
    finally:
        for module, (momentum, training) in zip(found, kept, strict=True):
            module.momentum, module.training = momentum, training
    return len(found)
