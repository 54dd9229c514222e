"""Our own FP8 product under block scales, for Hopper: how it is cut, its launch. Device code: ``cuda/block_gemm.cu``.

    a [M, K] codes under 1x128 scales, b [N, K] codes under 128x128 or 1x128 scales  ->  y [M, N]

Sums of 128 come from the tensor cores, are scaled and added in float32, by fused multiply-adds in the library's order:
its bits, where it does not split K. Nothing is allocated but the result and, where the scales do not lie as the copy
engine reads them, those; nothing waits, so that a CUDA graph can hold it.
"""

from ctypes import c_int, c_uint, c_void_p
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import CheckFailed
from narrowcast.kernels import driver

BLOCK = 128
AHEAD = 4  # scales of a square's row that are loaded together
LOADED = 16  # bytes that rows of codes and scales are multiples of, for the copy engine
OUTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tiling:
    """How a product is cut; the names are those of ``cuda/block_gemm.cu``.

    The fastest found on an H100 (LOG.md has the others): three warpgroups, so that one of them has the tensor cores
    whatever the others do; two neighbouring blocks of threads that share rows of ``a``.
    """

    WGS: int = 3
    STAGES: int = 5
    CM: int = 1
    CN: int = 2
    COLUMNS: int = 0
    OUT: int = 1
    GROUP: int = 8

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a block of threads."""
        return 64 * self.WGS, BLOCK

    @property
    def shared(self) -> int:
        """Bytes of shared memory: codes and scales of every stage, its two barriers, and what alignment may take."""
        rows, cols = self.tile
        codes, scales = (rows + cols) * BLOCK, 4 * (rows + (cols if self.COLUMNS else 32))
        return self.STAGES * (codes + scales + 16) + 1024


@lru_cache(maxsize=64)
def kernel(cut: Tiling, device: int) -> driver.Kernel:
    """Return the kernel of one tiling, loaded on a device, which is the current one."""
    code = driver.compiled("block_gemm", asdict(cut))
    return driver.Kernel(code, "block_gemm", 128 * cut.WGS + 128, cut.shared, cut.CM * cut.CN)


def faster(rows: int, cols: int, processors: int) -> bool:
    """Return whether a product ``[rows, cols]`` is expected to take less time than the library's.

    Both work in waves of one tile per multiprocessor: 192 x 128 in pairs here, 128 x 128 there. On an H100 an element
    of a wave took ours 0.91 to 0.95 of the library's time (LOG.md: two sizes, both kinds of scales); 0.95 is taken.
    """
    cut = Tiling()
    (down, across), pairs = cut.tile, processors // cut.CN
    waves = -(-(-(-rows // down) * -(-cols // (across * cut.CN))) // pairs)
    theirs = -(-(-(-rows // BLOCK) * -(-cols // BLOCK)) // processors)
    return 0.95 * waves * down * across < theirs * BLOCK * BLOCK


def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, tile_b: str, out: torch.dtype) -> Tensor:
    """Return ``[M, N]`` of FP8 codes ``a [M, K]`` and ``b [N, K]``, e4m3fn as uint8, on a Hopper GPU.

    Args:
        scale_a: float32 ``[M, K / 128]``.
        scale_b: float32 ``[N, K / 128]`` where ``tile_b`` is ``1x128``, else ``[N / 128, K / 128]``.
        tile_b: ``1x128`` or ``128x128``.
        out: float32, bfloat16 or float16.

    Raises CheckFailed where the kernel cannot be compiled or launched, with its name and the shapes.
    """
    rows, cols, depth = a.shape[0], b.shape[0], a.shape[1]
    columns, short = tile_b == "1x128", -cols % LOADED
    cut = Tiling(COLUMNS=int(columns), OUT=OUTS.index(out))
    try:
        with torch.cuda.device_of(a):
            right = F.pad(b, (0, 0, 0, short)) if short else b  # rows of the result are stored 16 bytes at once
            scales = (_loadable(scale_a.t()), _loadable(scale_b.t() if columns else scale_b))
            y = multiply(_loadable(a), _loadable(right), *scales, out, cut)
    except CheckFailed as error:
        what = f"e4m3fn [{rows}, {depth}] 1x128 by e4m3fn [{cols}, {depth}] {tile_b}, {out}"
        raise CheckFailed(f"kernel block_gemm, {what}: {error}") from None
    return y[:, :cols].contiguous() if short else y


def multiply(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out: torch.dtype, cut: Tiling) -> Tensor:
    """Return ``[M, N]``, N a multiple of 16, of operands that lie as the copy engine reads them.

    Args:
        a, b: codes, uint8 ``[M, K]`` and ``[N, K]``.
        scale_a: float32 ``[K / 128, M]``.
        scale_b: float32 ``[K / 128, N]`` where the cut has ``COLUMNS``, else ``[N / 128, K / 128]``.
        out: of the cut.
        cut: how the product is cut.
    """
    rows, cols, steps = a.shape[0], b.shape[0], scale_a.shape[0]
    y = torch.empty(rows, cols, dtype=out, device=a.device)
    down, across = cut.tile
    maps = (
        driver.tensor_map(a, (down // cut.CN, BLOCK), swizzled=True),
        driver.tensor_map(b, (across // cut.CM, BLOCK), swizzled=True),
        driver.tensor_map(scale_a, (1, down), swizzled=False),
        driver.tensor_map(scale_b, (1, across if cut.COLUMNS else AHEAD), swizzled=False),
    )
    found, cluster = kernel(cut, a.device.index), cut.CM * cut.CN
    tiles = -(-rows // (down * cut.CM)) * -(-cols // (across * cut.CN))
    blocks = min(found.clusters, tiles) * cluster
    found(blocks, *maps, c_void_p(y.data_ptr()), c_uint(rows), c_uint(cols), c_int(steps))
    return y


def _loadable(x: Tensor) -> Tensor:
    """Return a matrix whose rows the copy engine takes: contiguous, aligned, a multiple of 16 bytes apart."""
    size = LOADED // x.element_size()
    short = -x.shape[1] % size
    if short:
        return F.pad(x, (0, short))
    apart = x.stride(1) == 1 and (x.shape[0] == 1 or x.stride(0) % size == 0)
    return x if apart and x.data_ptr() % LOADED == 0 else x.clone(memory_format=torch.contiguous_format)
