"""Block scales that become one scale a row: exact for every code under every scale, and counted where they cannot."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.kernels.apart import HERE, needs_triton, run

import narrowcast as nc
from narrowcast.accumulate import accumulator
from narrowcast.backend import choose, gemm
from narrowcast.formats import pack
from narrowcast.kernels.plan import FP8, Plan, plan
from narrowcast.kernels.rebased import forget, rebased, settled, tally
from narrowcast.kernels.shifts import room
from narrowcast.ops import Gemm
from narrowcast.quantize import QTensor, cast

#: element, FP8 format: the smallest and largest shift, by hand: 0.5 * 2**-8 = 2**-9, 6 * 2**6 = 384 <= 448
SHIFTS = {
    ("e2m1fn", "e4m3fn"): (-8, 6),
    ("e2m1fn", "e5m2"): (-15, 13),
    ("e2m3fn", "e4m3fn"): (-6, 5),
    ("e3m2fn", "e4m3fn"): (-5, 4),
}


@needs_triton
def test_bits_in_the_interpreter():
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "rebase_bits.py")], interpret=True)
    assert " passed" in out and "skipped" not in out


def every(element: str, powers: torch.Tensor) -> QTensor:
    """Return rows of two blocks with every code, under every pair of e8m0 ``powers``."""
    fmt = nc.format(element)
    narrow = cast(f"{element}/1x{1 << fmt.bits}/e8m0")
    scales = torch.cartesian_prod(powers, powers).to(torch.uint8)
    codes = pack(torch.arange(1 << fmt.bits).repeat(2), fmt.bits).expand(len(scales), -1).contiguous()
    shape = (len(scales), 2 << fmt.bits)
    return QTensor(codes, scales[..., None], None, narrow, shape, shape, torch.float32)


@pytest.mark.parametrize(("element", "carrier"), SHIFTS)
def test_every_code_under_every_pair_of_scales(element, carrier):
    """FP8 codes are read by ml_dtypes; where a row fits is said by hand, from the bases that both blocks allow."""
    powers = torch.arange(256) if element == "e2m1fn" else torch.cat([torch.arange(55, 80), torch.arange(110, 142)])
    q = every(element, powers)
    found, lack = rebased(q, carrier)
    smallest, largest = SHIFTS[element, carrier]
    power, real = q.scales[..., 0].int() - 127, q.scales[..., 0] != 255
    low = torch.where(real, power - largest, -60).amax(1).clamp_min(-60)
    high = torch.where(real, power - smallest, 60).amin(1).clamp_max(60)
    assert torch.equal(lack == 0, low <= high)
    assert torch.equal(lack, (low - high).clamp_min(0).int())
    fits = lack == 0
    codes = found.codes[fits].numpy().view(getattr(ml_dtypes, f"float8_{carrier}")).astype(np.float64)
    values = codes * found.scales[fits].double().numpy()
    each = nc.format(element).decode(torch.arange(1 << nc.format(element).bits)).double()
    want = (each * torch.exp2(power[fits].double())[..., None]).numpy()
    want[~real[fits].numpy()] = np.nan
    assert np.array_equal(values, want.reshape(values.shape), equal_nan=True)
    assert np.array_equal(np.signbit(values[:, 8:9]), np.signbit(want.reshape(values.shape)[:, 8:9]))


def test_which_gemms_are_tried_on_fp8_units():
    made = plan(Gemm(cast("mxfp4"), cast("e3m2fn/1x32/e8m0-ceil")))
    assert not isinstance(made, str)
    assert (made.units, made.first) == ("bfloat16", Plan("fp8", "e4m3fn", "e4m3fn", "row", "row"))
    assert made.least > 0
    assert "row scales, split accumulation where every row's exponents fit, else bfloat16 mm" in str(made)
    for a, b, sums in (
        ("mxfp4", "mxfp8_e4m3", "fp32"),  # no room: E4M3's smallest and largest are the carrier's
        ("mxfp4", "nvfp4", "fp32"),  # no power of two
        ("mxfp4", "mxfp4", "hopper-fp16"),  # not how FP8 units sum
    ):
        made = plan(Gemm(cast(a), cast(b), accumulator=accumulator(sums)))
        assert not isinstance(made, str) and made.first is None
    assert {e: [room(nc.format(e), c) for c in FP8] for e in ("e2m1fn", "e4m3fn", "nf4")} == {
        "e2m1fn": [14, 28],
        "e4m3fn": [0, -1],
        "nf4": [-1, -1],
    }


def test_a_gpu_without_fp8_units_is_not_asked(monkeypatch):
    monkeypatch.setattr("narrowcast.backend.capability", lambda _, units="fp8": "none" if units == "fp8" else None)
    monkeypatch.setattr("narrowcast.backend._no_kernels", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    found = choose("native", Gemm(cast("mxfp4"), cast("mxfp4")), torch.device("cuda"), "layer").plan
    assert found is not None and found.first is None and found.least == 0


def operands(*spread: int) -> list[QTensor]:
    """Return 8 rows of 64 each, the second block of row 3 so many binades below the first; all codes there are 4.

    4 * 2**6 <= 448 and 4 * 2**-11 = 2**-9: 17 binades in e4m3fn; 4 * 2**13 and 4 * 2**-18: 31 in e5m2.
    """
    torch.manual_seed(0)
    x, w = (torch.randn(8, 64).clamp(-2, 2) for _ in "ab")
    for t, binades in zip((x, w), spread, strict=True):
        t[3, :32], t[3, 32:] = 1.0, 2.0**-binades
    return [cast("mxfp4").quantize(t) for t in (x, w)]


#: binades in the left and the right operand: what runs, and what is said of it
OUTCOMES = {
    (0, 0): ("e4m3fn", "1 of 1 products on FP8 units"),
    (17, 17): ("e4m3fn", "1 of 1 products on FP8 units"),
    (31, 17): ("e5m2", "1 of 1 products on FP8 units"),
    (18, 18): ("", "0 of 1 products on FP8 units; 1 in bfloat16: row 3 of the left operand misses e4m3fn by 1 binades"),
    (33, 0): ("", "0 of 1 products on FP8 units; 1 in bfloat16: row 3 of the left operand misses e5m2 by 2 binades"),
    (17, 31): ("e4m3fn", "1 of 1 products on FP8 units"),
    (0, 33): ("", "0 of 1 products on FP8 units; 1 in bfloat16: row 3 of the right operand misses e5m2 by 2 binades"),
}


@pytest.mark.parametrize("spread", OUTCOMES)
def test_what_runs_is_what_fits_and_is_counted(spread):
    a, b = operands(*spread)
    carrier, words = OUTCOMES[spread]
    made, found = plan(Gemm(a.cast, b.cast)), settled(a, b)
    assert not isinstance(made, str)
    assert ("" if isinstance(found, str) else found[2].a) == carrier
    want = 0.5 * a.dequantize().double() @ b.dequantize().double().mT
    forget()
    once = torch.compile(gemm, backend="eager", fullgraph=True)
    y = once(a, b, replace(made, least=0), torch.float32, 0.5)
    assert float((y - want).abs().max()) <= 1e-6 * float(want.abs().max())
    assert str(tally()) == words
    small = gemm(a, b, made, torch.float32, 0.5)
    assert float((small - want).abs().max()) <= 1e-6 * float(want.abs().max())
    assert str(tally()).endswith("; 1 in bfloat16: too small to gain")


def test_nan_and_zero_rows_give_what_emulate_gives():
    x, w = torch.randn(8, 64), torch.randn(8, 64)
    x[2], x[5, 40], w[1, 0] = 0.0, float("nan"), float("inf")
    a, b = (cast("mxfp4").quantize(t) for t in (x, w))
    made = plan(Gemm(a.cast, b.cast))
    assert not isinstance(made, str) and not isinstance(settled(a, b), str)
    y, want = gemm(a, b, replace(made, least=0), torch.float32), a.dequantize() @ b.dequantize().mT
    assert torch.equal(y.isnan(), want.isnan())
    assert bool((y[2, 2:] == 0).all())
