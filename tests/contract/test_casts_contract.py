"""What every cast promises: the presets, the casts of the recipes, and combinations that no recipe uses."""

import math

import pytest
import torch
from tests.cast_references import cast_matrix
from tests.witnesses import first_difference

from narrowcast.formats import Stream, roundings
from narrowcast.formats import format as format_
from narrowcast.ops import split
from narrowcast.quantize import PRESETS, QTensor, cast
from narrowcast.recipes import recipes
from narrowcast.scaling import Delayed, Divided, Narrow

FROM_RECIPES = {
    str(c)
    for r in recipes().values()
    if r.linear
    for gemm in (r.linear.fwd, r.linear.dgrad, r.linear.wgrad)
    for c in gemm.casts
}
UNUSUAL = [
    "e4m3fn", "int8", "e2m1fn/row/fp32", "e5m2/tensor/fp32/stochastic", "e4m3fnuz/1x32/e8m0-even/up",
    "e2m1fn/1x16/ue5m3/stochastic-4", "e2m1fn/8x16/e4m3fn+fp32/odd", "int4/1x16/e4m3fn+fp32", "int4_full/1x32/fp32",
    "e3m0fn/1x32/e8m0-nearest/toward-zero", "e2m3fn/4x8/e8m0-ceil-exponent/nearest-away", "q1.6/1x64/e8m0/stochastic",
    "e2m1fn/1x32/e8m0-four-thirds/stochastic", "e3m2fn/1x32/bfloat16/down", "uint8/1x32/fp32", "int16/1x32/fp32",
    "e2m1fn/1x32/e8m0/nearest-even/hadamard32", "e4m3fn/row/fp32/nearest-even/hadamard16-fixed",
    "e2m1fn/1x16/ue2m6+fp32", "e4m3fn/1x32/ue8m3_ieee/stochastic-equal", "int8_full/4x32/binary8p4ue/stochastic-flush",
    "e2m1fn/1x32+pad/e8m0/stochastic/hadamard64-fresh", "int8/16x16+pad/fp32/nearest-even/hadamard8",
    "posit8_1/1x32/fp32-headroom22", "posit8_1/1x32/e8m0-headroom11", "posit16_1/tensor/fp32-headroom26/stochastic",
    "hif8/tensor/e8m0-headroom12/nearest-away", "lns8_8/row/fp32/stochastic-8", "dynamic8/1x64/fp32", "af4/1x64/float16",
    "int4_bnb/1x16/e4m3fn+fp32/odd", "hif8_sat/row/one/up", "posit4_1/1x32/e8m0-ceil-headroom3/toward-zero",
    "e4m3fn/row/fp32-headroom3/stochastic", "e2m1fn/1x32/float16-signs", "int4/8x16/e8m0-signs", "nf4/row/fp32-signs",
    "e4m3fn/tensor/fp32-signs/stochastic", "nf4/1x64/dynamic8+fp32x256-mean", "e2m1fn/1x16/e4m3fn+fp32x16",
    "int4/4x32/int8+fp32x7-mean/up",
    "int4_full/1x32+pad/e8m0", "int4_full/1x32/fp32-zero4", "int8_full/row/bfloat16-zero8",
    "int3_full/4x16/float16-zero3/stochastic", "int8/row/float16", "e4m3fn/1x32/e8m0-three-quarters", "int8_full/row/divide-fp32",
    "e4m3fn/row/divide-bfloat16", "int4_full/1x32/divide-float16", "e2m1fn/1x16/e4m3fn+divide-fp32",
    "e2m1fn/1x16/e4m3fn+divide-bfloat16", "e4m3fn/tensor/divide-fp32/stochastic", "nf4/row/divide-bfloat16-signs",
]  # fmt: skip
TABLE = sorted({str(cast(s)) for s in [*PRESETS, *UNUSUAL]} | FROM_RECIPES)
every_cast = pytest.mark.parametrize("spelling", TABLE)
WITHOUT_TRANSFORM = [s for s in TABLE if "hadamard" not in s]
SCALED = [s for s in WITHOUT_TRANSFORM if "/" in s and "/one/" not in s]
ROWS, COLS = 32, 128


def source(rows: int = ROWS, cols: int = COLS, seed: int = 0) -> torch.Tensor:
    """Normal numbers under row and column scales that spread over many binades; a zero row; a -0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=generator)
    x *= torch.exp2(torch.randint(-12, 12, (rows, 1), generator=generator))
    x *= torch.exp2(torch.randint(-4, 4, (1, cols), generator=generator))
    if rows > 2:
        x[1] = 0.0
        x[2, 3] = -0.0
    return x


def apply(spelling, x, seed: int = 7):
    c = cast(spelling)
    history = c.scale.delayed.new() if c.scale.delayed else None
    return c.apply(x, Stream(seed), history)


def quantize(spelling, x, seed: int = 7) -> QTensor:
    c = cast(spelling)
    history = c.scale.delayed.new() if c.scale.delayed else None
    return c.quantize(x, Stream(seed), history)


@every_cast
def test_decoding_the_codes_is_the_cast_bit_for_bit(spelling):
    for x in (
        source(),
        source(5, 256, seed=1)[:, ::2] if "+pad" in spelling or "x" not in spelling else source(seed=1).T,
    ):
        if cast(spelling).tile.rows > 1 and x.shape[-2] % cast(spelling).tile.rows and not cast(spelling).tile.pad:
            continue
        if x.shape[-1] % cast(spelling).padding_multiple() and not cast(spelling).tile.pad:
            continue
        q = quantize(spelling, x)
        assert q.dequantize().dtype == x.dtype
        assert not first_difference(q.dequantize(), apply(spelling, x), x)


@pytest.mark.parametrize("spelling", [s for s in WITHOUT_TRANSFORM if "-zero" not in s and "-mean" not in s])
def test_codes_and_scales_apart_are_those_before_packing(spelling):
    c, x = cast(spelling), source()
    history = c.scale.delayed.new() if c.scale.delayed else None
    mine, theirs = split(quantize(spelling, x)), c.split(x, Stream(7), history)
    assert theirs.scale is not None
    assert not first_difference(mine.values, theirs.values, x)
    nonzero = theirs.values != 0  # a zero may have the scale of either sign
    assert torch.equal(mine.scale[nonzero], theirs.scale[nonzero])
    assert mine.smallest_normal == theirs.smallest_normal


@pytest.mark.parametrize("preset", PRESETS)
def test_decoding_the_codes_is_the_cast_under_every_rounding(preset):
    base, x = cast(preset), source(4)
    for mode in roundings():
        spelling = "/".join([*str(base).split("/")[:3], mode])
        assert not first_difference(quantize(spelling, x).dequantize(), apply(spelling, x), x), mode


@pytest.mark.parametrize("spelling", SCALED)
def test_scalar_reference(spelling):
    """The same matrix through plain Python, one number at a time."""
    c, x = cast(spelling), source(16, 128)
    draws = Stream(7).bits((16, 128)).tolist() if c.rounding.random else None
    scale = str(c.scale).partition("-delayed")[0]
    tile = str(c.tile).removesuffix("+pad")
    expected = cast_matrix(x.tolist(), c.format, tile, scale, str(c.rounding), draws, format_)
    assert not first_difference(apply(spelling, x), expected, x)


@every_cast
def test_zeros_stay_zeros(spelling):
    for x in (torch.zeros(ROWS, COLS), -torch.zeros(ROWS, COLS)):
        assert torch.equal(apply(spelling, x), torch.zeros(ROWS, COLS))
        assert torch.equal(quantize(spelling, x).dequantize(), torch.zeros(ROWS, COLS))


@pytest.mark.parametrize("spelling", SCALED)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
def test_a_value_that_is_not_finite_poisons_its_tile_and_no_other(spelling, bad):
    c, x = cast(spelling), source()
    x[17, 70] = bad
    result, decoded = apply(spelling, x), quantize(spelling, x).dequantize()
    blocks, inside = c.tile.blocks(c.tile.padded(torch.ones(ROWS, COLS)).clone())
    c.tile.blocks(c.tile.padded(torch.zeros(ROWS, COLS)))
    marker = torch.zeros(ROWS, COLS)
    marker[17, 70] = 1
    touched = torch.zeros_like(blocks) + c.tile.blocks(c.tile.padded(marker))[0].amax(inside, keepdim=True)
    touched = touched.view(c.tile.padded(marker).shape)[:ROWS, :COLS] > 0
    if c.scale.tensor_bits:
        touched = torch.ones_like(touched)  # the tensor's own scale is poisoned
    assert torch.equal(result.isnan(), touched)
    assert torch.equal(decoded.isnan(), touched)


@every_cast
def test_powers_of_two_pass_through_power_of_two_and_float32_scales(spelling):
    c = cast(spelling)
    if not (str(c.scale).startswith(("e8m0", "fp32", "divide-fp32")) or c.scale.tensor_bits):
        assert str(c.scale) == "one" or isinstance(getattr(c.scale, "rule", c.scale), Narrow | Divided)
        return  # without a scale, or with one whose grid is bounded, size matters
    x = source()
    assert not first_difference(apply(spelling, x * 2.0**9), apply(spelling, x) * 2.0**9, x)


@every_cast
def test_sign_symmetry(spelling):
    c, x = cast(spelling), source()
    lopsided = c.format.bits <= 16 and not torch.equal(c.format.values(), -c.format.values().flip(0))
    if lopsided or str(c.rounding) in ("up", "down"):
        return  # such as int4_full, and nf4, which has one positive value more
    assert not first_difference(apply(spelling, -x) + 0.0, -apply(spelling, x) + 0.0, x)


@every_cast
def test_leading_axes_strides_dtypes_and_the_input_left_alone(spelling):
    c, x = cast(spelling), source()
    kept, expected = x.clone(), apply(spelling, x)
    assert expected.dtype == torch.float32 and expected.shape == x.shape
    assert torch.equal(x, kept) and expected.data_ptr() != x.data_ptr()
    strided = x.T.contiguous().T
    assert not first_difference(apply(spelling, strided), expected, x)
    cube = x.view(2, ROWS // 2, COLS) if c.tile.rows <= 16 else x.view(1, ROWS, COLS)
    assert not first_difference(apply(spelling, cube).view(ROWS, COLS), expected, x)
    assert not first_difference(apply(spelling, x.double()), expected, x)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = x.clamp(-60000, 60000).to(dtype)
        assert not first_difference(apply(spelling, narrow), apply(spelling, narrow.float()), narrow)
        assert quantize(spelling, narrow).dequantize().dtype == dtype


@every_cast
@pytest.mark.parametrize("shape", [(0, COLS), (3, 0, COLS), (16, 0)])
def test_empty_tensors(spelling, shape):
    x = torch.empty(shape)
    assert apply(spelling, x).shape == shape
    assert quantize(spelling, x).dequantize().shape == shape


@pytest.mark.parametrize("spelling", [s for s in TABLE if cast(s).tile.rows == 1])
def test_rows_do_not_see_each_other(spelling):
    """The tiles of a row need nothing of the other rows, so a shard of rows is cast as in the whole tensor."""
    c, x = cast(spelling), source()
    if c.random or c.scale.tensor_bits:
        return  # draws are numbered over the whole tensor; so is its scale
    whole = apply(spelling, x)
    assert not first_difference(torch.cat([apply(spelling, x[:5]), apply(spelling, x[5:])]), whole, x)


@pytest.mark.parametrize("spelling", [s for s in TABLE if cast(s).random])
def test_random_casts_follow_their_stream(spelling):
    x = source()
    assert not first_difference(apply(spelling, x, seed=1), apply(spelling, x, seed=1), x)
    assert not torch.equal(apply(spelling, x, seed=1), apply(spelling, x, seed=2))


@every_cast
def test_what_is_stored_is_what_is_counted(spelling):
    c = cast(spelling)
    q = quantize(spelling, source())
    counted = c.bits_per_element((ROWS, COLS)) * ROWS * COLS / 8
    if c.padding_multiple() <= COLS and COLS % c.padding_multiple() == 0 and ROWS % max(c.tile.rows, 1) == 0:
        assert q.nbytes == math.ceil(counted)
    else:
        assert q.nbytes > counted  # padding is stored, and not counted as elements
    stored = q.codes.numel() * q.codes.element_size()
    assert stored == -(-q.padded[-1] * c.format.bits // 8) * math.prod(q.padded[:-1])


COMPILED = [
    "mxfp4",
    "nvfp4",
    "mxint8",
    "e4m3fn/128x128+pad/fp32",
    "e2m1fn/1x8/e8m0-four-thirds/stochastic/hadamard8-fresh",
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_compiled_casts_give_the_same_bits():
    casts = [cast(s) for s in COMPILED]

    def all_of_them(x, step):
        return [c.apply(x, Stream(3, 1, step)) for c in casts]

    torch.compiler.reset()
    compiled = torch.compile(all_of_them, fullgraph=True)
    for step in range(2):
        x = source(seed=step)
        for found, expected in zip(compiled(x, torch.tensor(step)), all_of_them(x, torch.tensor(step)), strict=True):
            assert not first_difference(found, expected, x)


def test_a_delayed_cast_uses_its_history():
    c, history = cast("e4m3fn/tensor/fp32-delayed4"), Delayed(4).new()
    history[2] = 4480.0  # the scale is 10 whatever x is, and what does not fit saturates
    x = torch.tensor([[1.0, 10.0, 4480.0, 1e6]])
    assert c.apply(x, history=history).tolist() == [[pytest.approx(1.0, rel=0.07), 10.0, 4480.0, 4480.0]]
    assert history[0] == 1e6
