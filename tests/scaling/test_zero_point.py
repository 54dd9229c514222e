"""Zero points: worked examples, torch's own affine quantization as witness, storage, what is refused."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.io.quantized import LayerSpec
from narrowcast.ptq import LeastError, gptq, output_error
from narrowcast.quantize import cast
from narrowcast.scaling import ZeroPoint, scale_rule

G = torch.Generator().manual_seed(0)


def test_the_sheets_example():
    """export-reference, section 4: int4 over [-1, 2] has the scale 0.2 and the zero point -3."""
    q = cast("int4_full/row/fp32-zero4").quantize(torch.tensor([[-1.0, 0.0, 0.35, 2.0]]))
    assert q.scales.tolist() == [[pytest.approx(0.2), -3.0]]
    assert q.dequantize().tolist() == [pytest.approx([-1.0, 0.0, 0.4, 2.0])]
    above = cast("int4_full/row/fp32-zero4").quantize(torch.tensor([[3.0, 7.5, 15.0, 10.4]]))
    assert above.scales.tolist() == [[1.0, -8.0]] and above.dequantize().tolist() == [[3.0, 8.0, 15.0, 10.0]]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_codes_are_torchs(bits):
    """torch divides; scales that are powers of two divide exactly, so that every code can be compared."""
    spelled, low = cast(f"int{bits}_full/row/fp32-zero{bits}"), -(1 << (bits - 1))
    top = (1 << bits) - 1
    x = torch.rand(64, 50, generator=G) * top
    x[:, 0], x[:, 1] = 0.0, top  # a span of all steps: the scale is 1
    x -= torch.randint(0, top, (64, 1), generator=G)
    x *= torch.exp2(torch.randint(-9, 9, (64, 1), generator=G))
    q = spelled.quantize(x)
    scale, zero = q.scales[:, :1], q.scales[:, 1:]
    assert torch.equal(scale.log2(), scale.log2().round())
    theirs = torch.fake_quantize_per_channel_affine(x, scale[:, 0], zero[:, 0].int(), 0, low, -low - 1)
    assert torch.equal(q.dequantize(), theirs)


def test_a_lopsided_tile_keeps_more_and_the_second_number_is_counted():
    x = torch.randn(64, 256, generator=G).abs()
    zero, plain = (((cast(f"int4_full/1x32/{s}").apply(x) - x) ** 2).mean() for s in ("fp32-zero4", "fp32"))
    assert zero < 0.3 * plain
    q = cast("int4_full/1x32/float16-zero4").quantize(x)
    assert q.nbytes == 64 * 256 // 2 + 64 * 8 * (16 + 4) // 8 and torch.equal(
        q.rows(3, 9).dequantize(), q.dequantize()[3:9]
    )
    assert LayerSpec("w", "w", "Linear", (64, 256), 1, (64, 256), False, q.cast).nbytes == q.nbytes


def test_settled_scales_and_solvers_take_them():
    c = cast("int4_full/1x4/fp32-zero4")
    settled = c.settle(torch.tensor([[0.0, 15.0, 3.0, 1.0]]))
    assert settled.apply(torch.tensor([[99.0, -4.0, 7.4, 14.6]])).tolist() == [[15.0, 0.0, 7.0, 15.0]]
    w, x = torch.randn(16, 64, generator=G) + 0.5, torch.randn(256, 64, generator=G)
    h = x.T @ x
    searched = LeastError(steps=10).settle(w, cast("int4_full/1x32/bfloat16-zero4"), h)
    found = gptq(w, h, searched)
    assert output_error(w, found.values, h) < output_error(w, searched.apply(w), h)
    assert torch.equal(found.quantized.dequantize(), found.values)


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("int4/row/fp32-zero4", "zero points of 4 bits are for int4_full, not int4"),
        ("int8_full/row/fp32-zero4", "not int8_full"),
        ("e2m1fn/row/fp32-zero4", "not e2m1fn"),
        ("int4_full/row/e8m0-zero4", "take a scale of fp32 or of a narrow float"),
        ("int4_full/row/fp32-zero9", "have 2 to 8 bits"),
    ],
)
def test_what_has_no_zero_point_is_refused(spelling, said):
    with pytest.raises(InputError, match=said):
        cast(spelling).apply(torch.ones(2, 4))


def test_spelling():
    assert str(scale_rule("bfloat16-zero4")) == "bfloat16-zero4" and isinstance(scale_rule("fp32-zero8"), ZeroPoint)
    with pytest.raises(InputError, match="accumulators on codes know no zero points"):
        cast("int4_full/row/fp32-zero4").split(torch.ones(2, 4))
