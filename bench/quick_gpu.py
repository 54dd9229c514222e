"""Kernels that run the short quotients of `kernels.quick` by themselves, for `passes_gpu` to try on all inputs."""

import torch
import triton
import triton.language as tl

from narrowcast.kernels.quick import quick_quotient, quick_reciprocal


@triton.jit
def quick_kernel(x_ptr, y_ptr, DIVISOR: tl.constexpr, INVERSE: tl.constexpr, SIZE: tl.constexpr):
    """One block of quotients; of reciprocals where DIVISOR is 0."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    y = quick_reciprocal(x) if DIVISOR == 0 else quick_quotient(x, DIVISOR, INVERSE)
    tl.store(y_ptr + at, y)


def reciprocals(x: torch.Tensor) -> torch.Tensor:
    """Return 1 / x by `quick_reciprocal`; the length of ``x`` is a multiple of 1024."""
    y = torch.empty_like(x)
    quick_kernel[(len(x) // 1024,)](x, y, DIVISOR=0, INVERSE=0, SIZE=1024)
    return y


def quotients(x: torch.Tensor, divisor: float) -> torch.Tensor:
    """Return x / divisor by `quick_quotient`."""
    y, inverse = torch.empty_like(x), float(1 / torch.tensor(divisor))
    quick_kernel[(len(x) // 1024,)](x, y, DIVISOR=divisor, INVERSE=inverse, SIZE=1024)
    return y
