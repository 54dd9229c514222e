"""RMSNorm whose input is kept for the backward pass in FP8 (Xi et al. 2025, COAT, section 5)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast import backend
from narrowcast.nn.change import Change
from narrowcast.nn.saved import again, form_of, tensors_of, tied
from narrowcast.quantize import Cast, QTensor


class _SavedNorm(torch.autograd.Function):
    """``x / rms(x) * weight`` of what x decodes to; its codes are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cast: Cast, name: str) -> Tensor:
        q = backend.quantize(x.reshape(-1, x.shape[-1]), cast, backend=name)
        wide = q.dequantize().float()
        inverse = _inverse(wide, eps)
        ctx.save_for_backward(weight, inverse, *tensors_of(q))
        ctx.form = form_of(q)
        return ((wide * inverse).to(x.dtype) * weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, inverse, *tensors = ctx.saved_tensors
        q = again(tensors, ctx.form)
        assert isinstance(q, QTensor)
        normed = tied(q, g).dequantize().float() * inverse
        flat = g.reshape(normed.shape).float()
        d_weight = (flat * normed).sum(0).to(weight.dtype)
        inner = flat * weight.float()
        dx = inverse * (inner - normed * (inner * normed).mean(-1, keepdim=True))
        return dx.to(g.dtype).view(g.shape), d_weight, None, None, None


def eps_of(norm: nn.Module) -> float:
    """Return what a norm adds to the mean square."""
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return float(eps or torch.finfo(torch.float32).eps)


def _inverse(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class SavedNorm(nn.Module):
    """An RMSNorm with the weight of the one that it replaces, ``x`` cast by ``saved``."""

    def __init__(self, source: nn.Module, eps: float, saved: Cast, name: str) -> None:
        super().__init__()
        self.weight, self.eps, self.saved, self.backend = source.weight, eps, saved, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed ``x`` ``[..., width]``, in its dtype."""
        y: Tensor = _SavedNorm.apply(x, self.weight, self.eps, self.saved, self.backend)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """Say how the input is kept."""
        return f"eps={self.eps}, saved={self.saved}"


@dataclass(frozen=True)
class Norms(Change):
    """Replace RMSNorms by `SavedNorm`."""

    saved: Cast

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`."""
        weight = getattr(module, "weight", None)
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.dim() != 1:
            return None
        return SavedNorm(module, eps_of(module), self.saved, backend)

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return "RMSNorm"

    def __str__(self) -> str:
        return f"RMSNorm, its input kept as {self.saved}"
