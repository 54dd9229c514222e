"""The activation side of a quantized model: what a module's input is rotated and rounded to before its product."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.quantize import Cast
from narrowcast.scaling import DividedTwoLevel
from narrowcast.transforms import Hadamard


class InputCast(nn.Module):
    """Rotates and rounds a tensor ``[..., K]``; keeps its dtype.

    Attributes:
        cast: what the input is rounded to, or None.
        transform: rotation of K before, or None.
        amax: buffer, 0-d: the magnitude that a static scale is made for; NaN where the scale is dynamic. Under two
            levels it fixes the second one, and the cast says so.
    """

    amax: Tensor

    def __init__(self, cast: Cast | None, transform: Hadamard | None = None, amax: Tensor | None = None) -> None:
        super().__init__()
        self.cast, self.transform = cast, transform
        self.static = amax is not None
        self.register_buffer("amax", torch.tensor(float("nan")) if amax is None else amax.detach().float())
        if cast is not None and amax is not None and isinstance(cast.scale, DividedTwoLevel):
            self.cast = replace(cast, scale=cast.scale.made_for(float(amax), cast.format))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the product sees."""
        flat = x.reshape(-1, x.shape[-1]).float()
        if self.transform is not None:
            flat = self.transform.forward(flat)
        if self.cast is not None and self.static and self.cast.tile.is_tensor:
            whole = self.amax.expand(1, 1)
            flat = self.cast.settle(whole).apply_to(flat)
        elif self.cast is not None:
            flat = self.cast.apply(flat, what="input")
        return flat.view(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Say what it does."""
        return f"{self.cast or 'wide'}{f', {self.transform}' if self.transform else ''}"


def attach(module: nn.Module, cast: InputCast) -> None:
    """Make ``module`` see its first argument through ``cast`` from now on; a second cast is refused."""
    assert not hasattr(module, "input_cast"), "one module, one input"
    module.add_module("input_cast", cast)
    module.register_forward_pre_hook(_through)


def _through(module: nn.Module, args: Any) -> Any:
    x, *rest = args
    cast: InputCast = module.input_cast  # type: ignore[assignment]
    return (cast(x), *rest)
