"""The gated unit ``silu(gate) * up`` between linear layers: smoothed, or with its inputs saved in FP8.

*Smooth-SwiGLU* (Fishman et al. 2025, "Scaling FP8 training to trillion-token LLMs", section 4.3): where the two
branches align, the product grows as the square of its input, and a single token breaks a scale taken from history.
Each token's ``up`` is divided by its own largest magnitude before the product is narrowed, and the last layer's output
is multiplied back. Here the divisor is rounded up to a power of two: then nothing changes but what the cast sees.

*Saved in FP8* (Xi et al. 2025, COAT, section 5): both inputs are cast in groups along the hidden axis; the product is
computed from what they decode to, and only their codes are kept for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast import backend
from narrowcast.errors import InputError
from narrowcast.nn.change import Change
from narrowcast.nn.context import in_dtype
from narrowcast.quantize import Cast, QTensor

_PARTS = ("gate_proj", "up_proj", "down_proj")
_EXPONENT = 0x7F800000  # float32's exponent field


def smoothing(up: Tensor) -> Tensor:
    """Return the power of two at or above each token's largest magnitude, ``[..., 1]`` float32, without gradient.

    1 for a token of zeros, and for one that is not finite: it stays what it is.
    """
    amax = up.detach().abs().amax(-1, keepdim=True).float()
    bits = (amax.clamp(2.0**-126, 2.0**126).view(torch.int32) + (1 << 23) - 1) & _EXPONENT
    return torch.where((amax > 0) & amax.isfinite(), bits.view(torch.float32), 1.0)


class _SavedProduct(torch.autograd.Function):
    """``silu(gate) * up / s`` of what the two decode to; their codes are kept, and s, float32."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, smooth: Tensor | None, cast: Cast, name: str) -> Tensor:
        codes = [backend.quantize(x.reshape(-1, x.shape[-1]), cast, backend=name) for x in (gate, up)]
        ctx.save_for_backward(*(t for q in codes for t in (q.codes, q.scales)), smooth)
        ctx.forms = [(q.cast, q.shape, q.padded, q.dtype) for q in codes]
        ctx.whole = gate.shape
        a, u = (q.dequantize().float().view(gate.shape) for q in codes)
        return in_dtype(F.silu(a) * (u if smooth is None else u / smooth), gate.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, smooth = ctx.saved_tensors
        sides = []
        for i, (cast, shape, padded, dtype) in enumerate(ctx.forms):
            q = QTensor(tensors[2 * i], tensors[2 * i + 1], None, cast, shape, padded, dtype)
            sides.append(q.dequantize().float().view(ctx.whole))
        a, u = sides
        wide = g.float() if smooth is None else g.float() / smooth
        sigmoid = torch.sigmoid(a)
        silu = a * sigmoid
        d_gate, d_up = wide * u * (sigmoid + silu * (1 - sigmoid)), wide * silu
        return d_gate.to(g.dtype), d_up.to(g.dtype), None, None, None


class GatedUnit(nn.Module):
    """``down(silu(gate(x)) * up(x))`` with the three layers of the module that it replaces.

    Attributes:
        smooth: whether each token's ``up`` is divided by a power of two before ``down``, and the output multiplied.
        saved: how both branches are cast and kept, or None to keep them wide.
        backend: of those casts.
    """

    def __init__(self, source: nn.Module, smooth: bool, saved: Cast | None, name: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (getattr(source, part) for part in _PARTS)
        self.smooth, self.saved, self.backend = smooth, saved, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output for ``x`` ``[..., width]``."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        s = smoothing(up) if self.smooth else None
        if self.saved is not None:
            product = _SavedProduct.apply(gate, up, s, self.saved, self.backend)  # type: ignore[no-untyped-call]
        else:
            product = F.silu(gate) * (up if s is None else (up / s).to(up.dtype))
        y: Tensor = self.down_proj(product)
        return y if s is None else (y * s).to(y.dtype)

    def extra_repr(self) -> str:
        """Say what it does besides the product."""
        return f"smooth={self.smooth}, saved={self.saved}"


@dataclass(frozen=True)
class Gated(Change):
    """Replace gated units (``gate_proj``, ``up_proj``, ``down_proj`` with SiLU, as in Llama) by `GatedUnit`."""

    smooth: bool = False
    saved: Cast | None = None

    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """See `Change.swap`."""
        if not all(isinstance(getattr(module, part, None), nn.Linear) for part in _PARTS):
            return None
        if "silu" not in type(getattr(module, "act_fn", None)).__name__.lower():
            return None
        down = module.down_proj
        if self.smooth and isinstance(down, nn.Linear) and down.bias is not None:
            raise InputError(f"module {name!r}: Smooth-SwiGLU would multiply the bias of down_proj; drop the bias")
        return GatedUnit(module, self.smooth, self.saved, backend).train(module.training)

    @property
    def wants(self) -> str:
        """See `Change.wants`."""
        return "gated unit with gate_proj, up_proj, down_proj and SiLU"

    def __str__(self) -> str:
        smooth = "Smooth-SwiGLU" if self.smooth else "SwiGLU"
        return f"{smooth}, its inputs kept as {self.saved}" if self.saved else smooth
