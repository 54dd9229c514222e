"""MXFP4 products for `bench.gemm`: on FP8 units and in bfloat16, with the passes that make their operands."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from narrowcast.backend import narrow
from narrowcast.kernels.gemm import decoded, exact_values, gemm
from narrowcast.kernels.plan import REBASED
from narrowcast.kernels.rebased import SIXTEEN, rebased
from narrowcast.kernels.rebased import gemm as by_data
from narrowcast.quantize import cast

Work = Callable[[], Tensor]


def works(x: Tensor, w: Tensor) -> tuple[dict[str, Work], dict[str, Work]]:
    """Return products of ``x`` and ``w`` in MXFP4 by name: those to be captured in a graph, and those to be called.

    A product that asks its data cannot be captured: its figure has launches and waiting in it, as that beside it has.
    """
    a, b = (narrow(cast("mxfp4"), t) for t in (x, w))
    left, right = rebased(a)[0], rebased(b)[0]
    first, second = (exact_values(q, torch.bfloat16) for q in (a, b))
    captured: dict[str, Work] = {
        "mxfp4 on FP8 units, product alone": lambda: gemm(left, right, REBASED, torch.bfloat16),
        "mxfp4 on FP8 units": lambda: gemm(rebased(a)[0], rebased(b)[0], REBASED, torch.bfloat16),
        "mxfp4 in bfloat16, product alone": lambda: first @ second.t(),
        "mxfp4 in bfloat16": lambda: gemm(a, b, SIXTEEN, torch.bfloat16),
        "mxfp4 in bfloat16, decoded by torch": lambda: decoded(a, torch.bfloat16) @ decoded(b, torch.bfloat16).t(),
    }
    called: dict[str, Work] = {
        "mxfp4 on FP8 units, called": lambda: by_data(a, b, replace(SIXTEEN, first=REBASED), torch.bfloat16),
        "mxfp4 in bfloat16, called": lambda: gemm(a, b, SIXTEEN, torch.bfloat16),
    }
    return captured, called
