"""Our own FP8 product under block scales, for Hopper: which tiles it takes, and its launch. Device code: ``cuda/``."""

import ctypes
from ctypes import c_int, c_uint, c_void_p
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor

from narrowcast.kernels import driver

BLOCK = 128
OUTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tiling:
    """How a product is cut; the names are those of ``cuda/block_gemm.cu``."""

    WGS: int = 2
    MSUB: int = 1
    NSUB: int = 4
    WN: int = 64
    STAGES: int = 4
    CM: int = 2
    CN: int = 1
    COLUMNS: int = 0
    HELD: int = 1
    DEPTH: int = 2
    OUT: int = 1
    GROUP: int = 8

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a block of threads."""
        return 64 * self.WGS * self.MSUB, self.NSUB * self.WN

    @property
    def shared(self) -> int:
        """Bytes of shared memory: codes and scales of every stage, its two barriers, and what alignment may take."""
        rows, cols = self.tile
        codes, scales = (rows + cols) * BLOCK, 4 * (rows + (cols if self.COLUMNS else 0))
        return self.STAGES * (codes + scales + 16) + 1024


@lru_cache(maxsize=64)
def kernel(tiling: Tiling, device: int) -> driver.Kernel:
    """Return the kernel of one tiling, loaded on a device."""
    code = driver.compiled("block_gemm", asdict(tiling))
    return driver.Kernel(code, "block_gemm", 128 * tiling.WGS + 128, tiling.shared, tiling.CM * tiling.CN)


def multiply(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out: torch.dtype, tiling: Tiling) -> Tensor:
    """Return ``[M, N]`` of FP8 codes ``a [M, K]`` and ``b [N, K]``, e4m3fn as uint8.

    Args:
        scale_a: float32 ``[K / 128, M]``, a row's scales a step of M apart.
        scale_b: float32 ``[K / 128, N]`` where the tiling has ``COLUMNS``, else ``[N / 128, K / 128]``.
    """
    rows, cols, steps = a.shape[0], b.shape[0], scale_a.shape[0]
    y = torch.empty(rows, cols, dtype=out, device=a.device)
    down, across = tiling.tile
    maps = (
        driver.tensor_map(a, (down // tiling.CN, BLOCK), swizzled=True),
        driver.tensor_map(b, (across // tiling.CM, BLOCK), swizzled=True),
        driver.tensor_map(scale_a, (1, down), swizzled=False),
        driver.tensor_map(scale_b, (1, across), swizzled=False) if tiling.COLUMNS else driver.TensorMap(),
    )
    found, cluster = kernel(tiling, a.device.index), tiling.CM * tiling.CN
    tiles = -(-rows // (down * tiling.CM)) * -(-cols // (across * tiling.CN))
    blocks = min(found.clusters, tiles) * cluster
    pointers = (c_void_p(scale_b.data_ptr()), c_void_p(y.data_ptr()))
    found(blocks, *maps, *pointers, c_uint(rows), c_uint(cols), c_int(steps))
    return y
