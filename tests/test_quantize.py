"""Block casts against gfloat's, and for any shape, dtype, strides and corner values."""

import gfloat.formats as gfloat
import numpy as np
import pytest
import torch
from gfloat import RoundMode, compute_scale_amax, decode_block, encode_block
from hypothesis import given, settings
from hypothesis import strategies as st

import narrowcast as nc
from narrowcast.formats import Stream, unpack
from tests.witnesses import first_difference

BLOCKS = {
    "mxfp8_e4m3": gfloat.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": gfloat.format_info_mxfp8_e5m2,
    "mxfp6_e2m3": gfloat.format_info_mxfp6_e2m3,
    "mxfp6_e3m2": gfloat.format_info_mxfp6_e3m2,
    "mxfp4": gfloat.format_info_mxfp4_e2m1,
    "mxint8": gfloat.format_info_mxint8,
}
MODES = {
    "nearest-even": RoundMode.TiesToEven,
    "nearest-away": RoundMode.TiesToAway,
    "toward-zero": RoundMode.TowardZero,
    "up": RoundMode.TowardPositive,
    "down": RoundMode.TowardNegative,
}


def blocks() -> torch.Tensor:
    """``[24, 32]`` float32: normal numbers at scales from 2**-130 to 2**125, with a zero and an outlier in each row."""
    x = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    x = (x.double() * torch.exp2(torch.linspace(-130, 125, 24, dtype=torch.float64))[:, None]).float()
    x[:, 7], x[:, 9] = 0.0, 6 * x[:, 8]
    return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", BLOCKS)
def test_codes_and_scales_are_gfloats(preset, mode):
    x, info = blocks(), BLOCKS[preset]
    spelling = f"{nc.cast(preset).format}/1x32/e8m0/{mode}"
    q = nc.quantize(x, spelling)
    codes = unpack(q.codes, q.cast.format.bits, 32).numpy()
    for row, values in enumerate(x.double().numpy()):
        scale = compute_scale_amax(info.etype.emax, values)
        stored, *expected = encode_block(info, scale, values / scale, MODES[mode])
        assert q.scales[row] == stored
        if preset == "mxint8":  # ours is symmetric: the code of -2 is left unused
            expected = [0x81 if code == 0x80 else code for code in expected]
        assert codes[row].tolist() == expected
        decoded = list(decode_block(info, [stored, *expected]))
        assert not first_difference(q.dequantize()[row], np.asarray(decoded, dtype=np.float32), values)


CORNERS = [0.0, -0.0, 1.0, -6.0, 448.0, 1e-45, -(2.0**-126), 2.0**-133, 3e38, float("inf"), float("nan")]
number = st.one_of(st.sampled_from(CORNERS), st.floats(-1e4, 1e4, width=16))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def tensors(draw) -> torch.Tensor:
    """A tensor of up to three leading axes, of any float dtype: contiguous, transposed, strided or expanded."""
    lead = draw(st.lists(st.integers(0, 3), max_size=2))
    shape = (*lead, draw(st.integers(1, 5)), 16 * draw(st.integers(1, 3)))
    count = int(np.prod(shape))
    some = draw(st.lists(number, min_size=1, max_size=24))
    flat = torch.tensor((some * (count // len(some) + 1))[:count], dtype=torch.float64)
    x = flat.to(draw(st.sampled_from(DTYPES))).view(shape)
    match draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"])):
        case "transposed":
            return x.mT.contiguous().mT
        case "strided":
            return x.repeat_interleave(2, dim=-1)[..., ::2]
        case "expanded":
            return x[..., :1, :].expand(shape)
    return x


@settings(max_examples=60, deadline=None)
@given(tensors(), st.sampled_from(["e2m1fn/1x16/e8m0", "nvfp4", "e4m3fn/row/fp32", "int8/tensor/fp32/stochastic",
                                   "e5m2/1x8/ue5m3/up/hadamard8", "bfloat16"]))  # fmt: skip
def test_any_tensor_is_quantized_as_its_contiguous_copy_is(x, spelling):
    c, kept, plain = nc.cast(spelling), x.clone(), x.clone().contiguous()
    q = c.quantize(x, Stream(3))
    found = q.dequantize()
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    contiguous = c.apply(plain, Stream(3))
    assert same(found, contiguous.to(x.dtype))
    assert same(c.apply(x, Stream(3)), contiguous)
    assert same(x, kept)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, but for those of NaNs."""
    return (
        torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num().double(), b.nan_to_num().double())
        and (torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan()))
    )


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_cast_to_the_type_that_a_tensor_has_changes_no_bit(name):
    """All 65536 patterns, each NaN with its sign and payload; the codes are a copy."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    x = every.view(getattr(torch, name)).view(64, -1)
    q = nc.cast(name).quantize(x)
    assert torch.equal(q.codes.view(torch.int16).flatten(), every)
    assert torch.equal(q.dequantize().isnan(), x.isnan())
    number = ~x.isnan()
    assert torch.equal(q.dequantize()[number], x[number])
    wider = nc.quantize(x.double(), name, axis=0)  # by way of rounding: numbers are the same, NaN has one code a sign
    found, nan = unpack(wider.codes, 16, 64).T, nc.format(name).nan_code
    expected = torch.where(
        x.isnan(), torch.where(every.view(64, -1) < 0, nan | 0x8000, nan), every.view(64, -1).int() & 0xFFFF
    )
    assert torch.equal(found, expected.int())
    x.zero_()
    assert q.codes.any()
    column = torch.ones(1, 3, dtype=x.dtype).mT  # contiguous, though its last stride is 3
    assert torch.equal(nc.cast(name).quantize(column).dequantize(), column)
