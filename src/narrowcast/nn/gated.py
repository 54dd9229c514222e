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
from narrowcast.nn.saved import codes_again, form_of, tensors_of, tied
from narrowcast.passes import smooth_scale
from narrowcast.quantize import Cast, QTensor

_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Saved:
    """How both branches are kept: their cast, the backend of it, the dtype of the product."""

    cast: Cast
    backend: str
    dtype: torch.dtype

    def codes(self, *branches: Tensor) -> list[QTensor]:
        """Return the codes of gate and up ``[M, F]``."""
        return [backend.quantize(x, self.cast, backend=self.backend) for x in branches]

    def product(self, codes: list[QTensor], smooth: Tensor | None) -> Tensor:
        """Return ``silu(gate) * up / s`` of what the codes decode to."""
        a, u = (q.dequantize().float() for q in codes)
        return in_dtype(F.silu(a) * (u if smooth is None else u / smooth), self.dtype)

    def gradients(self, g: Tensor, codes: list[QTensor], smooth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of gate and up, given the product's."""
        gate, up = codes
        chosen = backend.choose_gates(self.backend, gate, g, smooth)
        if chosen.backend == "emulate":
            gate, up = tied(gate, g), tied(up, g)
        found: tuple[Tensor, Tensor] = backend.gates(chosen.backend)(g, gate, up, smooth)
        return found


class _SavedProduct(torch.autograd.Function):
    """``silu(gate) * up / s`` of what gate and up ``[M, F]`` decode to; their codes are kept, and s ``[M, 1]``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, smooth: Tensor | None, saved: Saved) -> Tensor:
        codes = saved.codes(gate, up)
        ctx.save_for_backward(*(t for q in codes for t in tensors_of(q)), smooth)
        ctx.forms, ctx.saved = [form_of(q) for q in codes], saved
        return saved.product(codes, smooth)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, smooth = ctx.saved_tensors
        return *ctx.saved.gradients(g, codes_again(tensors, ctx.forms), smooth), None, None


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
        s = smooth_scale(up.detach()) if self.smooth else None
        if self.saved is None:
            y: Tensor = self.down_proj(F.silu(gate) * (up if s is None else (up / s).to(up.dtype)))
        else:
            y = self._saved(gate, up, s, self.saved)
        return y if s is None else (y * s).to(y.dtype)

    def _saved(self, gate: Tensor, up: Tensor, s: Tensor | None, cast: Cast) -> Tensor:
        saved = Saved(cast, self.backend, gate.dtype)
        flat = [None if t is None else t.reshape(-1, t.shape[-1]) for t in (gate, up, s)]
        product: Tensor = _SavedProduct.apply(*flat, saved)  # type: ignore[no-untyped-call]
        y: Tensor = self.down_proj(product.view(gate.shape))
        return y

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
