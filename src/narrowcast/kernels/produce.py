"""Device code: what makes the numbers that a pass narrows: a tensor itself, a norm, a gate, a GELU, or a gradient.

Element by element in float32 and in the order of `passes.wide`, so the bits are its; the result is rounded to the
source's dtype, as if it had been written and read again.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from narrowcast.kernels.quick import quick_reciprocal
from narrowcast.kernels.rounding import bits_of, float_of

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_RATE, _START = tl.constexpr(-0.010018715634942055), tl.constexpr(0.1875)
_SPAN, _ANCHOR = tl.constexpr(144.0), tl.constexpr(12583012.0)
_C1 = tl.constexpr(0.6931241750717163)
_C2 = tl.constexpr(0.24024099111557007)
_C3 = tl.constexpr(0.05590637028217316)
_C4 = tl.constexpr(0.009582818485796452)
_GELU = tl.constexpr(1.5957691669464111)
_GELU_3 = tl.constexpr(0.07135481387376785)
_GELU_9 = tl.constexpr(0.21406444907188416)


@dataclass(frozen=True)
class Producer:
    """What is computed of the inputs before it is narrowed.

    Attributes:
        kind: ``plain``, ``stacked`` (one matrix above another), ``norm``, ``swiglu``, ``gelu``, or the gradients
            ``swiglu-backward`` and ``gelu-backward``.
        lines: whether a number for each row multiplies in (a norm's 1/rms, the power of two of Smooth-SwiGLU).
    """

    kind: str = "plain"
    lines: bool = False

    @property
    def inputs(self) -> int:
        """Matrices read."""
        return {"stacked": 2, "swiglu": 2, "gelu-backward": 2, "swiglu-backward": 3}.get(self.kind, 1)

    @property
    def parts(self) -> int:
        """Matrices made, side by side."""
        return 2 if self.kind == "swiglu-backward" else 1

    def shape(self, x: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of what is made, inputs being of shape ``x``."""
        return x[0] * (2 if self.kind == "stacked" else 1), x[1] * self.parts


@triton.jit
def wide(raw, SOURCE: tl.constexpr):
    """Return loaded bits as float32."""
    if SOURCE == "float32":
        x = raw.to(tl.float32, bitcast=True)
    elif SOURCE == "bfloat16":
        x = (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = raw.to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def rounded(x, SOURCE: tl.constexpr):
    """Return float32 ``x`` rounded to the source's dtype, still float32."""
    if SOURCE == "bfloat16":
        if _IN_PTX:  # two at once: half an instruction each, where one by one they take a slow one
            bits = tl.inline_asm_elementwise(
                "{ .reg .b32 t; cvt.rn.bf16x2.f32 t, $3, $2; shl.b32 $0, t, 16; and.b32 $1, t, 0xffff0000; }",
                "=r,=r,f,f", [x], tl.int32, True, 2,
            )  # fmt: skip
            x = float_of(bits)
        else:
            bits = bits_of(x)
            near = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            x = tl.where(x == x, float_of(near), x)
    elif SOURCE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def bits_as(x, SOURCE: tl.constexpr):
    """Return float32 ``x``, already `rounded`, as the source's bits."""
    if SOURCE == "float32":
        raw = bits_of(x)
    elif SOURCE == "bfloat16":
        raw = (bits_of(x) >> 16).to(tl.int16)
    else:
        raw = x.to(tl.float16).to(tl.int16, bitcast=True)
    return raw


@triton.jit
def fused(a, b, c):
    """Return a * b + c, rounded once; interpreted, as `passes.wide.fused`: the interpreter's own is not fused."""
    if _IN_PTX:
        found = tl.fma(a, b, c)
    else:
        product, c = a.to(tl.float64) * b, c + tl.zeros(a.shape, tl.float64)
        total = product + c
        part = total - product
        lost = (product - (total - part)) + (c - part)
        bits = total.to(tl.int64, bitcast=True)
        away = tl.where((lost > 0) == (total > 0), 1, -1)
        inexact = ((lost > 0) | (lost < 0)) & ((bits & 1) == 0)
        found = tl.where(inexact, bits + away, bits).to(tl.float64, bitcast=True).to(tl.float32)
    return found


@triton.jit
def share_of(x):
    """Return what share of the span of exponents x comes to, between 0 and 1; NaN 0."""
    if _IN_PTX:  # -log2(e) / 144 and 27 / 144
        share = tl.inline_asm_elementwise(
            "fma.rn.sat.f32 $0, $1, 0fBC24258A, 0f3E400000;", "=f,f", [x], tl.float32, True, 1
        )
    else:
        share = fused(x, _RATE, _START)
        share = tl.minimum(tl.maximum(tl.where(share == share, share, 0.0), 0.0), 1.0)
    return share


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) by a polynomial, term by term as `passes.sigmoid`."""
    share = share_of(x)
    anchored = fused(share, _SPAN, _ANCHOR)
    f = fused(share, _SPAN, _ANCHOR - anchored)
    p = fused(f, _C4, _C3)
    p = fused(p, f, _C2)
    p = fused(p, f, _C1)
    p = fused(p, f, 1.0)
    return quick_reciprocal(fused(p, float_of(bits_of(anchored) << 23), 1.0))


@triton.jit
def made(x, y, z, line, column, P: tl.constexpr, SOURCE: tl.constexpr):
    """Return the one or two results of inputs ``x``, ``y``, ``z``, each by its place in `passes`."""
    if P.kind == "plain" or P.kind == "stacked":
        found = (x,)
    elif P.kind == "norm":
        found = (rounded((x * line) * column, SOURCE),)
    elif P.kind == "gelu":
        square = x * x
        found = (rounded(x * sigmoid(x * fused(square, _GELU_3, _GELU)), SOURCE),)
    elif P.kind == "gelu-backward":
        square = y * y
        s = sigmoid(y * fused(square, _GELU_3, _GELU))
        slope = fused((y * s) * (1.0 - s), fused(square, _GELU_9, _GELU), s)
        found = (rounded(x * slope, SOURCE),)
    elif P.kind == "swiglu":
        if P.lines:
            y = y * line
        found = (rounded((x * sigmoid(x)) * y, SOURCE),)
    else:
        tl.static_assert(P.kind == "swiglu-backward")
        s = sigmoid(y)
        gate = y * s
        up = x * gate
        if P.lines:
            z = z * line
            up = up * line
        found = (rounded((x * z) * fused(gate, 1.0 - s, s), SOURCE), rounded(up, SOURCE))
    return found
