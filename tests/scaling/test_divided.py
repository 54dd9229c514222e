"""Scales by division: against compressed-tensors itself, bit for bit, in every dtype it computes in."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from narrowcast.errors import InputError
from narrowcast.formats import Integer
from narrowcast.formats import format as format_
from narrowcast.quantize import cast
from narrowcast.scaling import Divided, DividedTwoLevel, PowerOfTwo, scale_rule
from narrowcast.scaling.divided import CARRIERS, half_range

TOKEN_FP8 = PRESET_SCHEMES["FP8_DYNAMIC"]["input_activations"]
TOKEN_INT8 = PRESET_SCHEMES["W8A8"]["input_activations"]
SPELLED = {
    "e4m3fn/row": TOKEN_FP8,
    "int8_full/row": TOKEN_INT8,
    "int4_full/row": QuantizationArgs(num_bits=4, type="int", strategy="token", dynamic=True),
    "e4m3fn/1x128": PRESET_SCHEMES["FP8_BLOCK"]["input_activations"],
}


def source(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normal numbers under row scales over many binades, ties of an 8-bit grid, a row of zeros, one of subnormals."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 256, generator=generator) * torch.exp2(torch.randint(-10, 10, (64, 1), generator=generator))
    x[0], x[1] = 0.0, torch.arange(256) / 2 - 63.75
    x[2] = torch.randn(256, generator=generator) * 2.0**-128
    return x.to(dtype)


def theirs(x: torch.Tensor, args: QuantizationArgs, whole: torch.Tensor | None = None) -> torch.Tensor:
    """What compressed-tensors makes of ``x`` at run time, tile by tile."""
    tiles = x if args.group_size is None else x.unflatten(-1, (-1, args.group_size))
    scale, zero = calculate_qparams(tiles.amin(-1), tiles.amax(-1), args, global_scale=whole)
    if args.group_size is None:
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
    return fake_quantize(x, scale, zero, args, global_scale=whole).float()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("spelling", SPELLED)
def test_dynamic_inputs_are_those_of_compressed_tensors(spelling, carrier):
    for seed in range(4):
        x = source(CARRIERS[carrier], seed)
        found = cast(f"{spelling}/divide-{carrier}").apply(x).to(x.dtype).float()
        expected = theirs(x, SPELLED[spelling])
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("carrier", ["fp32", "bfloat16"])
def test_nvfp4_inputs_are_those_of_compressed_tensors(carrier):
    args = PRESET_SCHEMES["NVFP4"]["input_activations"]
    for seed in range(4):
        x = source(CARRIERS[carrier], seed)
        amax = x.abs().max().float() / 4  # as calibrated; what is larger saturates
        rule = scale_rule(f"e4m3fn+divide-{carrier}")
        multiplier, fixed = (
            rule.multiplier(amax.view(1), format_("e2m1fn")),
            rule.made_for(float(amax), format_("e2m1fn")),
        )
        assert torch.allclose(multiplier, generate_gparam(-amax, amax), rtol=2.0**-23, atol=0)  # theirs rounds twice
        found = cast(f"e2m1fn/1x16/{fixed}").apply(x).to(x.dtype).float()
        assert torch.equal(found, theirs(x, args, multiplier))


@pytest.mark.parametrize(("element", "name"), [("e2m1fn", "MXFP4"), ("e4m3fn", "MXFP8")])
def test_mx_inputs_are_those_of_compressed_tensors(element, name):
    args = PRESET_SCHEMES[name]["input_activations"]
    for seed in range(4):
        x = source(torch.bfloat16, seed)[3:]  # their scale of zeros and subnormals is 2**-127, ours 1: zeros either way
        assert torch.equal(cast(f"{element}/1x32/e8m0-three-quarters").apply(x), theirs(x, args))


def test_the_reference_values():
    """export-reference, section 3: executed with compressed-tensors 0.20.0."""
    amax = torch.tensor([1, 1.74, 1.75, 3.49, 3.5, 6, 7])
    back = PowerOfTwo("three-quarters").scale(amax, format_("e2m1fn")).back[0]
    assert back.tolist() == [0.25, 0.25, 0.5, 0.5, 1, 1, 2]
    assert float(Divided().scale(torch.tensor(7.0), format_("int4_full")).stored) == pytest.approx(0.93333, abs=1e-5)
    assert float(Divided().scale(torch.tensor(448.0), format_("e4m3fn")).stored) == 1.0
    rule = DividedTwoLevel(format_("e4m3fn"))
    assert float(rule.multiplier(torch.tensor(3.0), format_("e2m1fn"))) == 896.0
    scale = rule.scale(torch.tensor([3.0, 0.5, 0.0]), format_("e2m1fn"))
    assert format_("e4m3fn").decode(scale.stored).tolist() == [448.0, 72.0, 0.125]


def test_any_multiplier_survives_its_reciprocal():
    """float32's reciprocal of a reciprocal is another number for every fifth multiplier; float64's is not."""
    multipliers = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 1
    assert torch.equal(multipliers.double().reciprocal().double().reciprocal().float(), multipliers)
    assert not torch.equal(multipliers.reciprocal().reciprocal(), multipliers)


def test_half_the_range():
    ranges = {name: half_range(format_(name)) for name in ("int8", "int8_full", "int4_full", "e4m3fn", "q1.6")}
    assert ranges == {"int8": 127.0, "int8_full": 127.5, "int4_full": 7.5, "e4m3fn": 448.0, "q1.6": 127 / 64}
    assert half_range(Integer("u", 4, signed=False, symmetric=False)) == 7.5


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("divide-fp8", "unknown carrier"),
        ("divide-fp32-fixedx", "is no number"),
        ("divide-fp32-fixed0", "above 0"),
        ("divide-fp32-fixedinf", "above 0"),
        ("e8m0+divide-fp32", "a second level adds nothing"),
    ],
)
def test_bad_spellings_are_refused(spelling, said):
    with pytest.raises(InputError, match=said):
        scale_rule(spelling)


def test_a_fixed_scale_stays_whatever_the_data():
    fixed = Divided().made_for(3.0, format_("int8_full"))
    assert scale_rule(str(fixed)) == fixed
    x = torch.tensor([[100.0, 0.5]])
    assert cast(f"int8_full/tensor/{fixed}").apply(x).tolist() == [
        [pytest.approx(127 * 3 / 127.5), pytest.approx(0.5, abs=0.012)]
    ]
    args = QuantizationArgs(num_bits=8, type="int", strategy="tensor", symmetric=True)
    expected = fake_quantize(x, torch.tensor([fixed.fixed]), None, args)
    assert torch.equal(cast(f"int8_full/tensor/{fixed}").apply(x), expected)
