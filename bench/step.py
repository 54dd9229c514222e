"""The training step that `train_gpu` times: a few layers of a Llama, under a recipe, a peer's, or none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import narrowcast as nc
from narrowcast.attend import attend

#: every variant's; or else a layer's buffers are kept for the next layer, through attention's backward pass
COMPILED = {"allow_buffer_reuse": False}


@dataclass(frozen=True)
class Sizes:
    """Of the layers (a Llama-8B's), and of a batch."""

    width: int = 4096
    gated: int = 14336
    heads: int = 32
    keys: int = 8
    layers: int = 4
    batch: int = 4
    context: int = 4096


SIZES = Sizes()


class Block(nn.Module):
    """One Llama layer, plainly."""

    def __init__(self, sizes: Sizes, attention: str) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(sizes.width, eps=1e-5) for _ in "ip")
        self.self_attn, self.mlp = Attention(sizes, attention), Gated(sizes.width, sizes.gated)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Llama's, with rotated queries and keys."""

    def __init__(self, sizes: Sizes, attention: str) -> None:
        super().__init__()
        width = sizes.width
        self.size, self.attention = width // sizes.heads, attention
        small = sizes.keys * self.size
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in "qo")
        self.k_proj, self.v_proj = (nn.Linear(width, small, bias=False) for _ in "kv")
        angle = torch.arange(sizes.context)[:, None] / 5e5 ** (torch.arange(0, self.size, 2) / self.size)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).to(x.dtype)

    def forward(self, normed: Tensor) -> Tensor:
        shape = (*normed.shape[:2], -1, self.size)
        q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(self.rotate(q), self.rotate(k), v, kind=self.attention)
        return self.o_proj(y.transpose(1, 2).reshape(normed.shape))


class Gated(nn.Module):
    """Llama's gated unit."""

    def __init__(self, width: int, gated: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, gated, bias=False) for _ in "gu")
        self.down_proj, self.act_fn = nn.Linear(gated, width, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def made(sizes: Sizes, attention: str, device: str) -> nn.Sequential:
    """Return the layers in bfloat16, the same weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = nn.Sequential(*(Block(sizes, attention) for _ in range(sizes.layers)))
    return model.to(torch.bfloat16)


def peer(model: nn.Module, name: str) -> None:
    """Convert by torchao."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name(name))


def step_of(model: nn.Sequential, sizes: Sizes, compiled: bool, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return one forward and backward pass, which returns output, gradient of the input, and of the first weight."""
    torch.manual_seed(1)
    shape = (sizes.batch, sizes.context, sizes.width)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn_like(x)  # what is scaled to be near one, as recipes without scales want it
    run = torch.compile(model, fullgraph=True, options=COMPILED) if compiled else model

    def step() -> tuple[Tensor, ...]:
        model.zero_grad(set_to_none=True)
        y = run(x)
        y.backward(g)
        gradient, x.grad = x.grad, None
        return y.detach(), gradient, model[0].self_attn.q_proj.weight.grad

    return step


def variant(
    name: str, sizes: Sizes, attention: str, compiled: bool, device: str = "cuda", backend: str = "native"
) -> tuple[nn.Sequential, Callable[[], tuple[Tensor, ...]], dict[str, Any]]:
    """Return (layers, `step_of` them, what runs the gemms of the first) of ``bf16``, a recipe or ``torchao PEER``."""
    model, gemms = made(sizes, attention, device), {}
    if name.startswith("torchao "):
        peer(model, name.removeprefix("torchao "))
    elif name != "bf16":
        gemms = nc.convert(model, name, backend=backend).narrow[0].gemms
    return model, step_of(model, sizes, compiled, device), gemms
