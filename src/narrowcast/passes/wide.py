"""What makes the tensors of a training step, wide: norms, gates, GELU and their gradients, in one exact order.

Elementwise arithmetic is float32, each operation rounded, in the order written here: multiply and add are one operation
where `fused` says so and nowhere else; IEEE's division and square root, an exponential that is a polynomial of our own,
pairwise sums over rows (`pairwise_sum`). So a kernel can give the same bits on any device. A result is rounded to the
dtype of its source. (The sign of NaN is the processor's own affair. Under `torch.compile` the compiler may contract
multiplications and additions, as anywhere.)
"""

import torch
from torch import Tensor

from narrowcast.formats.format import float32_of

ROWS = 32  # rows whose gradients of a norm's weight are summed one after another
SPAN, LEAST = 144.0, 27  # the powers of two of an exponential: 2**-27 (beside 1 nothing is left of it) to 2**117
RATE, START = -0.010018715634942055, 0.1875  # -log2(e) / SPAN in float32, LEAST / SPAN
ANCHOR = 12582912.0 + 100  # 1.5 * 2**23: beside it float32's last bit is 1; 100 more make exponents of n - LEAST
POWERS = (0.009582818485796452, 0.05590637028217316, 0.24024099111557007, 0.6931241750717163)
GELU = (1.5957691669464111, 0.07135481387376785, 0.21406444907188416)  # sqrt(8/pi) times 1, 0.044715, 3 * 0.044715


def pairwise_sum(x: Tensor) -> Tensor:
    """Return the float32 sums over the last axis (kept): neighbours first, then the sums of neighbours, and so on."""
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = torch.nn.functional.pad(x, (0, 1))
        x = x[..., 0::2] + x[..., 1::2]
    return x


def fused(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return float32 ``a * b + c``, rounded once, as a fused multiply-add does.

    The product is exact in float64; the sum is rounded there to odd (its last bit is set where anything was lost),
    which rounds to float32 as the exact one does (Boldo and Melquiond 2008). Numbers are float32's own values.
    """
    product = a.double() * (b.double() if isinstance(b, Tensor) else b)
    c = c.double() if isinstance(c, Tensor) else c
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    bits = total.view(torch.int64)
    away = torch.where((lost > 0) == (total > 0), 1, -1)
    inexact = ((lost > 0) | (lost < 0)) & ((bits & 1) == 0)
    return torch.where(inexact, bits + away, bits).view(torch.float64).float()


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)) of float32 ``x``, within 1e-5 of it for x > -80: 2**t by a polynomial of degree 4.

    t + `LEAST` is held between 0 and `SPAN`, of which it is first the share: the processor clamps to 0 and 1 for
    nothing (and takes NaN for 0).
    """
    share = fused(x, RATE, START).clamp(0.0, 1.0).nan_to_num(0.0)
    anchored = fused(share, SPAN, ANCHOR)
    f = fused(share, SPAN, ANCHOR - anchored)
    p = fused(f, POWERS[0], POWERS[1])
    for c in (*POWERS[2:], 1.0):
        p = fused(p, f, c)
    power = (anchored.view(torch.int32) << 23).view(torch.float32)
    return fused(p, power, 1.0).reciprocal()


def rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x**2) + eps) of each row, float32 ``[M, 1]``."""
    wide = float32_of(x)
    mean = pairwise_sum(wide * wide)
    mean = mean / torch.full_like(mean, x.shape[-1])
    # by way of float64, which rounds as IEEE's float32: torch's own on a CPU is off by a bit for a third of all numbers
    return (mean + eps).double().sqrt().float().reciprocal()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x / rms(x) * weight in the dtype of ``x``, 1 / rms(x) float32 ``[M, 1]``) for ``x [M, K]``."""
    inverse = rms(x, eps)
    return (float32_of(x) * inverse * float32_of(weight)).to(x.dtype), inverse


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x + delta in the dtype of ``x``, the norm of that, 1 / rms float32 ``[M, 1]``)."""
    total = (float32_of(x) + float32_of(delta)).to(x.dtype)
    return (total, *rms_norm(total, weight, eps))


def rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, also: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `rms_norm`'s ``x`` (in its dtype) and ``weight`` (float32).

    Args:
        g: gradient of the norm ``[M, K]``.
        x, weight, inverse: what the norm was given, and 1 / rms.
        also: another gradient of ``x``, of the residual stream that passes the norm by; added before rounding.

    With n = x * inverse and t = g * weight: dx = (t - n * mean(t * n)) * inverse, dw = sum of g * n over rows: `ROWS`
    of them one after another, then pairwise.
    """
    normal, wide = float32_of(x) * inverse, float32_of(g)
    t = wide * float32_of(weight)
    mean = pairwise_sum(t * normal)
    mean = mean / torch.full_like(mean, x.shape[-1])
    dx = (t - normal * mean) * inverse
    if also is not None:
        dx = dx + float32_of(also)
    return dx.to(x.dtype), _sum_of_rows(wide * normal)


def _sum_of_rows(x: Tensor) -> Tensor:
    blocks = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % ROWS)).view(-1, ROWS, x.shape[-1])
    total = torch.zeros_like(blocks[:, 0])
    for row in blocks.unbind(1):
        total = total + row
    return pairwise_sum(total.mT)[:, 0]


def smooth_scale(up: Tensor) -> Tensor:
    """Return the scale of each row of Smooth-SwiGLU's linear branch, float32 ``[M, 1]``.

    The smallest power of two that is at least max|up| (1 for a row of zeros, and where a row is not finite), so that
    taking it off and putting it back changes no bit. Source: Fishman et al. 2025 (sheet 01), per token.
    """
    top = float32_of(up).abs().amax(-1, keepdim=True)
    bits = top.view(torch.int32)
    exponent = ((bits >> 23) + (bits & 0x7FFFFF).ne(0)).clamp(1, 253)
    scale = (exponent.int() << 23).view(torch.float32)
    return torch.where((top == 0) | ~top.isfinite(), 1.0, scale)


def swiglu(gate: Tensor, up: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return ``gate * sigmoid(gate) * up`` in the dtype of ``gate``; with ``scale``, ``up / scale`` instead of ``up``.

    That (`smooth_scale`) is Smooth-SwiGLU, whose scale is put back after the gemm that follows: ``y = scale * (W z)``.
    """
    wide, linear = float32_of(gate), float32_of(up)
    if scale is not None:
        linear = linear * scale.reciprocal()
    return (wide * sigmoid(wide) * linear).to(gate.dtype)


def swiglu_backward(g: Tensor, gate: Tensor, up: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the gradients of `swiglu`'s ``gate`` and ``up``, side by side: ``[M, 2 F]`` in the dtype of ``gate``.

    No gradient flows through ``scale``.
    """
    wide, a, linear = float32_of(g), float32_of(gate), float32_of(up)
    s = sigmoid(a)
    silu = a * s
    dup = wide * silu
    if scale is not None:
        linear, dup = linear * scale.reciprocal(), dup * scale.reciprocal()
    dgate = (wide * linear) * fused(silu, 1.0 - s, s)
    return torch.cat([dgate.to(gate.dtype), dup.to(gate.dtype)], dim=-1)


def gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form, ``x * sigmoid(sqrt(8/pi) (x + 0.044715 x**3))``, in the dtype of ``x``."""
    wide = float32_of(x)
    return (wide * sigmoid(wide * fused(wide * wide, GELU[1], GELU[0]))).to(x.dtype)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `gelu`'s ``x``, in its dtype."""
    wide = float32_of(x)
    square = wide * wide
    s = sigmoid(wide * fused(square, GELU[1], GELU[0]))
    slope = fused((wide * s) * (1.0 - s), fused(square, GELU[2], GELU[0]), s)
    return (float32_of(g) * slope).to(x.dtype)
