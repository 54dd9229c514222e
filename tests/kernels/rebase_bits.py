"""Kernels that rebase block scales against their plain twins, bit for bit: on a GPU, else in Triton's interpreter.

Not collected by name: `test_rebased.py` runs this file in a process of its own.
"""

import pytest
import torch

from narrowcast.formats.packing import packed_size
from narrowcast.kernels import rebase as kernels
from narrowcast.kernels import rebased as plain
from narrowcast.kernels.gemm import decoded, one_pass
from narrowcast.kernels.widen import widen
from narrowcast.quantize import QTensor, cast

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASTS = ("mxfp4", "e2m1fn/32x32/e8m0-four-thirds", "e2m3fn/1x32/e8m0-ceil", "e3m2fn/1x24/e8m0", "int4/1x64/e8m0")


def hard(rows: int, cols: int) -> torch.Tensor:
    """Return rows of many binades, of zeros, with a block far below, with NaN and infinity, and beyond all bases."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, cols, generator=generator) * torch.exp2(
        torch.randint(-70, 70, (rows, 1), generator=generator).float()
    )
    x[1::7], x[2::7, 64:128], x[3, 5], x[5, 9] = 0, x[2::7, 64:128] * 2.0**-18, float("nan"), float("-inf")
    return x.to(DEVICE)


@pytest.mark.parametrize("spelling", CASTS)
@pytest.mark.parametrize("cols", [192, 2304])
def test_bits(spelling, cols):
    tall = cast(spelling).tile.rows
    q = cast(spelling).quantize(hard(64, cols)[: max(tall, 8 if cols > 192 else 16)])
    for carrier in ("e4m3fn", "e5m2"):
        scales = q.scales.reshape(q.padded[0] // tall, -1)
        given = (q.codes, scales, plain.tables(q.cast.format.name, carrier, q.codes.device), tall, q.cast.tile.cols)
        found, want = (module.rebase(*given, 4 / 3) for module in (kernels, plain))
        for a, b in zip(found, want, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if carrier == "e4m3fn" and tall == 1:
            assert 0 < int((found[2] == 0).sum()) < len(found[2])


@pytest.mark.parametrize("spelling", ["mxfp4", "e2m3fn/1x24/e8m0", "nvfp4", "mxfp8_e4m3", "e2m1fn/16x16/ue5m3+fp32"])
def test_values_in_bfloat16(spelling):
    """Every byte of codes, and every scale there is."""
    narrow = cast(spelling)
    assert one_pass(narrow)
    rows, cols = 8 * narrow.tile.rows, narrow.tile.cols * 32
    codes = (torch.arange(rows * packed_size(cols, narrow.format.bits)) * 77 % 256).to(torch.uint8).view(rows, -1)
    scales = (torch.arange(256) * 5 % 256).to(torch.uint8).view(narrow.quantize(torch.ones(rows, cols)).scales.shape)
    second = torch.ones(()) if narrow.scale.tensor_bits else None
    q = QTensor(codes.to(DEVICE), scales.to(DEVICE), second, narrow, (rows, cols), (rows, cols), torch.float32)
    found, want = widen(q.codes, q.scales, spelling), decoded(q, torch.bfloat16)
    assert bool(((found == want) | (found.isnan() & want.isnan())).all())
    assert bool(want.isnan().any()) and want[want.isfinite()].unique().numel() > 100
