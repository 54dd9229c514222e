"""Device code: IEEE's quotients where the range is known, in a few instructions and without a branch."""

import triton
import triton.language as tl

from narrowcast.kernels.scale import reciprocal

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def quick_reciprocal(x):
    """Return 1 / x, correctly rounded, for normal ``x`` of 2**-126 to 2**125: the processor's guess, set right once.

    That is how its own division begins, which goes on to look for subnormals; all of these x were tried
    (`bench/passes_gpu.py`).
    """
    if _IN_PTX:
        guess = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        found = tl.fma(guess, tl.fma(-x, guess, 1.0), guess)
    else:
        found = reciprocal(x)
    return found


@triton.jit
def quick_quotient(x, DIVISOR: tl.constexpr, INVERSE: tl.constexpr):
    """Return x / DIVISOR, correctly rounded where that is at least 2**-126, for DIVISOR of 8 to 2**16.

    A guess by the rounded reciprocal, and one step by its remainder (Markstein 1990, theorem 8); small x is moved up,
    so that the remainder is exact.
    """
    small = x < 1e-20  # times 2**64, and back
    a = tl.where(small, x * 18446744073709551616.0, x)
    guess = a * INVERSE
    q = tl.fma(tl.fma(-guess, DIVISOR, a), INVERSE, guess)
    return tl.where(small, q * 5.421010862427522e-20, q)
