"""The compressed-tensors layout: bytes and args against compressed-tensors itself, and what it cannot express."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

from narrowcast.errors import InputError
from narrowcast.io.cached import cached_in_fp8
from narrowcast.io.compressed import CompressedTensors, served
from narrowcast.io.compressed.args import cast_from, input_args, weight_args
from narrowcast.io.compressed.formats import FORMATS, name_of
from narrowcast.io.compressed.words import from_words, offset_binary, to_words
from narrowcast.io.naming import Naming, Piece
from narrowcast.io.quantized import LayerSpec, QuantizedLayer
from narrowcast.quantize import cast
from narrowcast.transforms import Hadamard

BF16 = torch.bfloat16
#: weight, input, static; one row per layout that serving tools know
CASTS = {
    "FP8_DYNAMIC": ("e4m3fn/row/fp32", "e4m3fn/row/fp32", False),
    "FP8": ("e4m3fn/tensor/fp32", "e4m3fn/tensor/fp32", True),
    "FP8_BLOCK": ("e4m3fn/128x128+pad/fp32", "e4m3fn/1x128/fp32", False),
    "W8A8": ("int8/row/fp32", "int8/row/fp32", False),
    "W4A16": ("int4/1x128/fp32", None, False),
    "W3A16": ("int3/1x128/fp32", None, False),
    "W8A16": ("int8/1x128/fp32", None, False),
    "W4AFP8": ("int4/1x128/fp32", "e4m3fn/row/fp32", False),
    "W4A16_ASYM": ("int4_full/1x128/fp32-zero4", None, False),
    "W3A16_ASYM": ("int3_full/row/fp32-zero3", None, False),
    "W8A8_ASYM": ("int8_full/row/fp32-zero8", "int8/row/fp32", False),
    "NVFP4": ("e2m1fn/1x16/e4m3fn+fp32", "e2m1fn/1x16/e4m3fn+fp32", True),
    "NVFP4A16": ("e2m1fn/1x16/e4m3fn+fp32", None, False),
    "MXFP4": ("e2m1fn/1x32/e8m0", "e2m1fn/1x32/e8m0", False),
    "MXFP4A16": ("e2m1fn/1x32/e8m0-ceil", None, False),
    "MXFP8": ("e4m3fn/1x32/e8m0", "e4m3fn/1x32/e8m0", False),
    "MXFP8A16": ("e4m3fn/1x32/e8m0", None, False),
}

EXPECTED = {
    "W4A16": "pack-quantized", "W3A16": "pack-quantized", "W8A16": "pack-quantized", "W4AFP8": "pack-quantized",
    "W4A16_ASYM": "pack-quantized", "W3A16_ASYM": "pack-quantized", "W8A8_ASYM": "int-quantized",
    "W8A8": "int-quantized", "NVFP4": "nvfp4-pack-quantized", "NVFP4A16": "nvfp4-pack-quantized",
    "MXFP4": "mxfp4-pack-quantized", "MXFP4A16": "mxfp4-pack-quantized", "MXFP8": "mxfp8-quantized",
    "MXFP8A16": "mxfp8-quantized",
}  # fmt: skip
every_preset = pytest.mark.parametrize("preset", CASTS)


def spec(preset: str, shape=(256, 384), dtype=BF16, name="m.q_proj.weight") -> LayerSpec:
    weight, activation, static = CASTS[preset]
    w, a = served(cast(weight), cast(activation) if activation else None, dtype)
    return LayerSpec(name, name.removesuffix(".weight"), "Linear", shape, 1, shape, False, w, a, None, static)


def layer(preset: str, dtype=BF16, shape=(256, 384)) -> QuantizedLayer:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x[3] = 0.0
    made = spec(preset, shape, dtype)
    return QuantizedLayer(made, (made.weight.quantize(x),), 3.25 if made.static else None)


# --- bytes: export-reference, section 4, executed with compressed-tensors 0.20.0 ---


def words(values, bits: int) -> list[int]:
    codes = offset_binary(torch.tensor(values) & ((1 << bits) - 1), bits)
    return [w & 0xFFFFFFFF for w in to_words(codes, bits).tolist()]


def test_golden_words():
    assert words(list(range(-8, 0)), 4) == [0x76543210]
    assert words(list(range(8)), 4) == [0xFEDCBA98]
    assert words([-128, -1, 0, 127], 8) == [0xFF807F00]
    assert words([-4, -3, -2, -1, 0, 1, 2, 3] * 4, 3) == [0x88FAC688, 0xC688FAC6, 0xFAC688FA]
    zeros = torch.arange(-8, 8).view(8, 2)  # zero points are packed along dim 0
    assert [words(zeros[:, i].tolist(), 4)[0] for i in (0, 1)] == [0xECA86420, 0xFDB97531]


def test_golden_nibbles():
    row = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    q = replace(cast("e2m1fn/1x16/e4m3fn+divide-fp32").quantize(row[None]), scales=torch.full((1, 1, 1), 0x38))
    packed = FORMATS["nvfp4-pack-quantized"].write(q, BF16)["weight_packed"]
    assert bytes(packed[0].tolist()).hex(" ") == "10 32 54 76 98 ba dc fe"


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [32, 33, 100])
def test_words_are_those_of_compressed_tensors(bits, count):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (5, count), generator=generator)
    codes = offset_binary(values & ((1 << bits) - 1), bits)
    packed = to_words(codes, bits)
    assert torch.equal(packed, pack_to_int32(values.to(torch.int8), bits))
    assert torch.equal(from_words(packed, bits, count), codes)


def test_nibbles_are_those_of_compressed_tensors():
    values = cast("e2m1fn").format.values().float()
    row = values[torch.randint(0, 15, (4, 64), generator=torch.Generator().manual_seed(0))]
    q = cast("e2m1fn/1x32/e8m0").quantize(row)
    scale = q.cast.scale.restore(q.scales, None)[0]
    packed = FORMATS["mxfp4-pack-quantized"].write(q, BF16)["weight_packed"]
    assert torch.equal(packed & 0x77, pack_fp4_to_uint8(row.view(4, 2, 32).div(scale).view(4, 64)) & 0x77)


def test_words_of_another_size_are_refused():
    with pytest.raises(InputError, match="expected 4 int32 words per row"):
        from_words(torch.zeros(2, 3, dtype=torch.int32), 4, 32)


# --- args, config, tensors ---


@every_preset
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16])
def test_they_decompress_to_our_values(preset, dtype):
    """In the scale's dtype where scales are plain, in bfloat16 for block-scaled floats."""
    made = layer(preset, dtype)
    args = weight_args(made.spec.weight)
    inputs = input_args(made.spec.activation, made.spec.static) if made.spec.activation else None
    name = name_of(args, inputs)
    assert name == EXPECTED.get(preset, "float-quantized")
    parts = FORMATS[name].write(made.matrices[0], dtype)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format=name)
    theirs = BaseCompressor.get_value_from_registry(name).decompress(dict(parts), scheme)["weight"]
    ours = replace(made.matrices[0], dtype=torch.float32).dequantize()
    assert torch.equal(theirs, ours.to(theirs.dtype))
    assert theirs.dtype == (BF16 if "fp4" in name or "mxfp8" in name else dtype)


@every_preset
def test_reading_what_was_written(preset):
    for dtype in (torch.float32, BF16):
        made = layer(preset, dtype, (200, 256))
        args = weight_args(made.spec.weight)
        kind = name_of(args, input_args(made.spec.activation, made.spec.static) if made.spec.activation else None)
        again = FORMATS[kind].read(FORMATS[kind].write(made.matrices[0], dtype), args)
        ours = replace(made.matrices[0], dtype=torch.float32).dequantize()
        assert torch.equal(replace(again, dtype=torch.float32).dequantize(), ours)
        assert again.shape == (200, 256)


@every_preset
def test_config_is_one_that_they_accept_and_the_inputs_cast_comes_back(preset):
    made = spec(preset)
    layout = CompressedTensors(BF16)
    assert layout.refusal(made) == ""
    config = layout.config([made], ["lm_head", "model.embed"])
    parsed = QuantizationConfig.model_validate(config)
    group = parsed.config_groups["group_0"]
    assert config["ignore"] == ["lm_head", "model.embed"] and group.targets == ["Linear"]
    assert parsed.format == group.format == EXPECTED.get(preset, "float-quantized")
    assert parsed.quantization_status == "compressed"
    if made.activation is not None:
        assert cast_from(config["config_groups"]["group_0"]["input_activations"], BF16, "input") == made.activation


def test_tensors_by_name_shape_and_dtype():
    """export-reference, section 4."""

    def shapes(preset):
        found = CompressedTensors(BF16).tensors(layer(preset))
        assert all(name.startswith("m.q_proj.") for name in found)
        return {name.removeprefix("m.q_proj."): (tuple(t.shape), t.dtype) for name, t in found.items()}

    fp8 = ((256, 384), torch.float8_e4m3fn)
    assert shapes("FP8_DYNAMIC") == {"weight": fp8, "weight_scale": ((256, 1), BF16)}
    assert shapes("FP8") == {"weight": fp8, "weight_scale": ((1,), BF16), "input_scale": ((1,), BF16)}
    assert shapes("FP8_BLOCK") == {"weight": fp8, "weight_scale": ((2, 3), BF16)}
    assert shapes("W8A8") == {"weight": ((256, 384), torch.int8), "weight_scale": ((256, 1), BF16)}
    assert shapes("W4A16") == {
        "weight_packed": ((256, 48), torch.int32), "weight_scale": ((256, 3), BF16), "weight_shape": ((2,), torch.int64),
    }  # fmt: skip
    assert shapes("W4A16_ASYM") == shapes("W4A16") | {"weight_zero_point": ((32, 3), torch.int32)}
    assert shapes("W8A8_ASYM") == shapes("W8A8") | {"weight_zero_point": ((256, 1), torch.int8)}
    assert shapes("NVFP4") == {
        "weight_packed": ((256, 192), torch.uint8), "weight_scale": ((256, 24), torch.float8_e4m3fn),
        "weight_global_scale": ((1,), torch.float32), "input_global_scale": ((1,), torch.float32),
    }  # fmt: skip
    assert shapes("MXFP4") == {"weight_packed": ((256, 192), torch.uint8), "weight_scale": ((256, 12), torch.uint8)}
    assert shapes("MXFP8") == {"weight": fp8, "weight_scale": ((256, 12), torch.uint8)}


def test_scales_that_the_models_dtype_does_not_hold_are_kept_in_float32():
    q = cast("e4m3fn/row/fp32").quantize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    assert FORMATS["float-quantized"].write(q, BF16)["weight_scale"].dtype == torch.float32


def test_mixed_schemes_name_their_layers():
    wide, narrow = spec("FP8_DYNAMIC", name="a.up_proj.weight"), spec("NVFP4A16", name="a.down_proj.weight")
    config = CompressedTensors(BF16).config([wide, narrow], [])
    assert config["format"] == "mixed-precision" and config["ignore"] == ["lm_head"]
    assert [g["targets"] for g in config["config_groups"].values()] == [["a.up_proj"], ["a.down_proj"]]
    assert [g["format"] for g in config["config_groups"].values()] == ["float-quantized", "nvfp4-pack-quantized"]
    QuantizationConfig.model_validate(config)


def test_experts_are_split_under_the_checkpoints_names():
    base = spec("W4A16", (8, 128), name="m.experts.gate_up")
    experts = replace(base, kind="experts", count=2, stored=(2, 8, 128))
    matrices = tuple(base.weight.quantize(torch.randn(8, 128)) for _ in range(2))
    pieces = tuple(
        Piece(f"m.experts.{i}.w{1 + 2 * half}", i, 4 * half, 4 * half + 4) for i in (0, 1) for half in (0, 1)
    )
    layout = CompressedTensors(BF16, Naming({experts.name: pieces}))
    found = layout.tensors(QuantizedLayer(experts, matrices))
    assert {n.rpartition(".")[0] for n in found} == {p.module for p in pieces}
    assert found["m.experts.1.w3.weight_shape"].tolist() == [4, 128]
    with pytest.raises(InputError, match="names of single experts are not known"):
        CompressedTensors(BF16).tensors(QuantizedLayer(experts, matrices))


def test_scales_of_cached_keys_and_values():
    layout, (made,) = CompressedTensors(BF16), cached_in_fp8({"m.self_attn": (448.0, 7.0)}, "bfloat16")
    assert {n: t.tolist() for n, t in layout.cache_tensors(made).items()} == {
        "m.self_attn.k_scale": [1.0], "m.self_attn.v_scale": [0.015625],
    }  # fmt: skip
    parsed = QuantizationConfig.model_validate(layout.config([spec("FP8_DYNAMIC")], [], [made.spec]))
    assert parsed.kv_cache_scheme.num_bits == 8 and layout.cache_refusal(made.spec) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ordered": True}, "an order of their own"),
        ({"static": False}, "under one calibrated scale each"),
        ({"value": None}, "cached values stay wide"),
        ({"key": cast("int8/row/float16")}, "cached keys become int8/row/float16"),
    ],
)
def test_caches_that_cannot_be_written(change, said):
    (made,) = cached_in_fp8({"m.self_attn": (448.0, 7.0)}, "bfloat16")
    assert said in CompressedTensors(BF16).cache_refusal(replace(made.spec, **change))


@pytest.mark.parametrize(
    ("weight", "activation", "static", "said"),
    [
        ("int4_full/tensor/fp32-zero4", None, False, "zero points are for rows and groups there"),
        ("int8/row/fp32", "int8_full/row/fp32-zero8", False, "zero points of inputs are not written there"),
        ("e5m2/row/fp32", None, False, "has e4m3fn, e2m1fn and signed integers of 2 to 8 bits, not e5m2"),
        ("e3m4/row/fp32", None, False, "not e3m4"),
        ("e3m2fn/1x32/e8m0", None, False, "not e3m2fn"),
        ("posit8_1/row/fp32", None, False, "not posit8_1"),
        ("uint4/1x32/fp32", None, False, "not uint4"),
        ("int4/1x32/float16-signs", None, False, "a scale for each sign"),
        ("e2m1fn/1x32/fp32", None, False, "groups of 32 under e8m0 there, or of 16"),
        ("e2m1fn/1x32/e8m0-four-thirds", None, False, "groups of 32 under e8m0 there"),
        ("e2m1fn/1x32/e4m3fn+fp32", None, False, "or of 16 under e4m3fn"),
        ("int4/1x16/e4m3fn+fp32", None, False, "two-level scales are for e2m1fn"),
        ("e4m3fn/1x128/fp32", None, False, "have tiles of tensor, row or MxN there"),
        ("int4/1x100/fp32", None, False, "do not divide its K = 384"),
        ("e4m3fn/128x128+pad/fp32", "e4m3fn/1x100/fp32", False, "input tiles of 1x100 do not divide"),
        ("int8/row/fp32", "int8/row/fp32", False, "loaders compute int8_full/row/divide-fp32/nearest-even instead"),
        ("e4m3fn/1x32/e8m0", "e4m3fn/1x32/e8m0", False, "loaders compute e4m3fn/1x32/e8m0-three-quarters"),
        ("e2m1fn/1x16/e4m3fn+fp32", "e2m1fn/1x16/e4m3fn+fp32", False, "take the scale of the whole tensor from calib"),
    ],
)
def test_what_it_cannot_express_is_refused_in_one_line(weight, activation, static, said):
    made = replace(
        spec("W4A16"), weight=cast(weight), activation=cast(activation) if activation else None, static=static
    )
    why = CompressedTensors(BF16).refusal(made)
    assert said in why and "\n" not in why


def test_layers_that_it_cannot_hold():
    layout, made = CompressedTensors(BF16), spec("W4A16")
    assert "Conv1D layers are not known there" in layout.refusal(replace(made, kind="Conv1D"))
    assert "rotated" in layout.refusal(replace(made, transform=Hadamard(32)))
    assert "to bfloat16, not torch.float32; make it bfloat16" in CompressedTensors(torch.float32).refusal(
        spec("NVFP4A16")
    )
    with pytest.raises(InputError, match="no calibration row met it"):
        layout.tensors(replace(layer("NVFP4"), input_amax=None))
    with pytest.raises(InputError, match=r"models of torch\.float64"):
        CompressedTensors(torch.float64)
