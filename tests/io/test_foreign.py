"""Reading checkpoints of other tools: what those tools themselves decode, and one clear line for the rest.

``data/foreign.safetensors`` was written by AutoGPTQ 0.7.1, AutoAWQ 0.2.9 and bitsandbytes 0.50.2 from random numbers, with
the values that each decodes its own tensors to; its metadata says by which functions.
"""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.entrypoints.convert.converters import ModelOptNvfp4Converter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from safetensors.torch import load_file, save_file

from narrowcast.errors import InputError
from narrowcast.io.compressed.formats import FORMATS
from narrowcast.io.foreign import LAYOUTS, open_checkpoint
from narrowcast.io.foreign.compressed import scheme_of
from narrowcast.io.foreign.table import reader_of
from narrowcast.quantize import cast

GOLDEN = load_file(Path(__file__).parent / "data" / "foreign.safetensors")
CASES = sorted({name.split("/")[0] for name in GOLDEN})
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def config(case: str) -> dict:
    tool, what, _ = (*case.split("-"), "")[:3]
    if tool == "gptq":
        return {"quant_method": "gptq", "bits": int(what), "group_size": 32, "desc_act": case.endswith("order")}
    if tool == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    double = case.endswith("double")
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": what, "bnb_4bit_use_double_quant": double}  # fmt: skip


def parts(case: str) -> dict[str, torch.Tensor]:
    return {n.split("/")[1]: t for n, t in GOLDEN.items() if n.startswith(f"{case}/") and not n.endswith("/values")}


def read(settings: dict, tensors: dict[str, torch.Tensor]):
    names = {f"m.{suffix}": suffix for suffix in tensors}
    reader = reader_of(settings, frozenset(names), "test")
    found = reader.parts(names)
    assert list(found) == ["m"] and set(found["m"].values()) == set(names)
    return reader.read("m", {suffix: tensors[names[name]] for suffix, name in found["m"].items()})


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_that_the_tool_decodes(case):
    expected = GOLDEN[f"{case}/values"]
    found = read(config(case), parts(case))
    assert torch.equal(found.values().to(expected.dtype), expected)
    assert (found.quantized is not None) == case.endswith(("sym", "plain")) or case.startswith("bnb")


def test_gptq_version_2_keeps_its_zero_points_as_they_are():
    tensors = parts("gptq-4-plain")
    zeros = tensors["qzeros"].view(torch.uint8)
    more = ((zeros & 15) + 1 & 15) | ((zeros >> 4) + 1 & 15) << 4
    second = read(
        config("gptq-4-plain") | {"checkpoint_format": "gptq_v2"}, tensors | {"qzeros": more.view(torch.int32)}
    )
    assert torch.equal(second.values(), read(config("gptq-4-plain"), tensors).values())


def test_symmetric_weights_come_back_as_codes():
    for case, fmt in (("gptq-4-sym", "int4_full"), ("awq-sym", "int4_full")):
        q = read(config(case), parts(case)).quantized
        assert str(q.cast) == f"{fmt}/1x32/float16/nearest-even" and q.shape == (32, 64)


def test_deepseeks_fp8():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 300, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3, generator=generator)
    found = read(FP8, {"weight": weight, "weight_scale_inv": scale})
    theirs = FP8BlockDequantizer(weight_block_size=(128, 128), dtype=torch.float32)
    assert torch.equal(found.values(), theirs._create_dequantized_weight(weight, scale))
    assert str(found.activation) == "e4m3fn/1x128/fp32/nearest-even"


def test_modelopts_nvfp4():
    """By way of compressed-tensors' own converter; it takes a reciprocal in float32, so the last bit may differ."""
    q = cast("nvfp4").quantize(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    tensors = {
        "weight": q.codes, "weight_scale": q.scales.squeeze(-1).view(torch.float8_e4m3fn),
        "weight_scale_2": q.tensor_scale.view(1), "input_scale": torch.tensor(0.25),
    }  # fmt: skip
    found = read(MODELOPT, tensors)
    assert torch.allclose(found.values(), q.dequantize(), rtol=2.0**-22, atol=0)
    assert str(found.activation) == "e2m1fn/1x16/e4m3fn+divide-bfloat16-fixed0.25/nearest-even"
    named = {f"m.{n}": t for n, t in tensors.items()}
    theirs = ModelOptNvfp4Converter(targets=["re:.*"]).process(dict(named))
    scheme = QuantizationScheme(targets=["Linear"], weights=PRESET_SCHEMES["NVFP4"]["weights"])
    stored = {n.removeprefix("m."): t for n, t in theirs.items()}
    decoded = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").decompress(stored, scheme)["weight"]
    assert torch.equal(decoded, found.values().to(decoded.dtype))
    assert theirs["m.input_global_scale"] == 4


def test_modelopts_fp8():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    tensors = {"weight": weight, "weight_scale": torch.tensor(0.5), "input_scale": torch.tensor(0.125)}
    found = read(MODELOPT | {"quant_algo": "FP8"}, tensors)
    assert torch.equal(found.values(), weight.float() * 0.5)
    assert str(found.activation) == "e4m3fn/tensor/divide-fp32-fixed0.125/nearest-even"


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compressed_tensors_with_zero_points(bits):
    generator = torch.Generator().manual_seed(bits)
    args = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    state = {
        "weight": torch.randn(48, 64, generator=generator), "weight_scale": torch.rand(48, 2, generator=generator) + 0.1,
        "weight_zero_point": torch.randint(low, high + 1, (48, 2), generator=generator).to(torch.int8),
    }  # fmt: skip
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = compressor.compress(state, scheme)
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
    }  # fmt: skip
    found = read(settings, stored)
    assert torch.equal(found.values(), compressor.decompress(stored, scheme)["weight"])
    assert str(found.quantized.cast) == f"int{bits}_full/1x32/fp32-zero{bits}/nearest-even"
    again = FORMATS["pack-quantized"].write(found.quantized, torch.float32)
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)


def test_columns_in_another_order():
    """``weight_g_idx`` of releases until August 2026: the group of each column."""
    codes = torch.randint(-8, 8, (16, 64), generator=torch.Generator().manual_seed(0))
    index = torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 32
    scale = torch.tensor([[1.0, 4.0]]).expand(16, 2)
    stored = {
        "weight_packed": pack_to_int32(codes.to(torch.int8), 4), "weight_shape": torch.tensor([16, 64]),
        "weight_scale": scale, "weight_g_idx": index.int(),
    }  # fmt: skip
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": "group"}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": args}}}
    assert torch.equal(read(settings, stored).values(), codes * torch.where(index == 1, 4.0, 1.0))
    plain = read(settings, stored | {"weight_g_idx": torch.full((64,), -1).int()})
    assert plain.quantized is not None and torch.equal(plain.values()[:, :32], codes[:, :32].float())


def test_which_scheme_holds_for_a_module():
    schemes = [{"targets": ["Linear"], "n": 0}, {"targets": ["re:.*down_proj$", "a.b"], "n": 1}]
    assert [scheme_of(m, schemes, ["lm_head", "re:.*gate$"]) for m in ("lm_head", "x.gate")] == [None, None]
    assert [scheme_of(m, schemes, [])["n"] for m in ("x.up_proj", "x.down_proj", "a.b", "a.b.c")] == [0, 1, 1, 0]


# --- folders ---


def folder(path: Path, settings: dict | None, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    quantization = {} if settings is None else {"quantization_config": settings}
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **quantization}))
    save_file({n: t.clone() for n, t in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    return path


NORM = {"norm.weight": torch.ones(64, dtype=torch.float16)}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("gptq-4-order", "GPTQ v1: int4 in groups of 32, zero points stored less one, columns in activation order; "),
        ("awq-plain", "AWQ gemm: int4 in groups of 32, zero points, interleaved; "),
        (
            "bnb-nf4-double",
            "bitsandbytes 4-bit: nf4 in blocks of the flattened weight, scales quantized to 8 bits again; ",
        ),
    ],
)
def test_one_line_says_what_it_is(case, said, tmp_path):
    tensors = {f"m.{n}": t for n, t in parts(case).items()} | NORM
    opened = open_checkpoint(folder(tmp_path / "model", config(case), tensors))
    size = sum(t.nbytes for t in parts(case).values())
    assert opened.describe() == said + f"1 weights ({size / 1e6:.3g} MB), 1 tensors wide (float16, 0.000128 MB)"
    dense = dict(opened.dense(torch.float16))
    assert list(dense) == ["m.weight", "norm.weight"] and dense["m.weight"].dtype == torch.float16
    assert torch.equal(dense["m.weight"].float(), GOLDEN[f"{case}/values"].half().float())


def test_modelopts_config_beside_the_models(tmp_path):
    tensors = {"m.weight": torch.zeros(4, 16, dtype=torch.float8_e4m3fn), "m.weight_scale": torch.tensor(1.0)}
    path = folder(tmp_path / "model", None, tensors)
    (path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert open_checkpoint(path).describe().startswith("ModelOpt FP8: e4m3fn, one scale a tensor; 1 weights")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 5}, "GPTQ checkpoint of 5 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "in format 'marlin'"),
        ({"quant_method": "awq", "bits": 8}, "AWQ checkpoint of 8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "its packing is another"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"8 bits \(LLM\.int8\)"),
        ({"quant_method": "fp8"}, r"expected \[rows, columns\]"),
        (FP8 | {"activation_scheme": "static"}, "activation_scheme 'static'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "expected NVFP4 or FP8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"FP8_DYNAMIC": ["Linear"]}}, "presets are not read"),
        ({"quant_method": "quip"}, "no layout known here; known: narrowcast, compressed-tensors, gptq, awq, "),
    ],
)
def test_settings_that_are_not_known(settings, said):
    with pytest.raises(InputError, match=said) as found:
        reader_of(settings, frozenset(), "here")
    assert "\n" not in str(found.value) and str(found.value).startswith("model here: ")


def test_every_layout_declines_the_others():
    for name, row in LAYOUTS.items():
        assert row({"quant_method": "another"}, frozenset()) is None, name


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        (config("gptq-4-plain"), parts("gptq-4-plain") | {"scales": torch.ones(3, 32)}, "3 groups do not divide its K = 64"),
        (config("gptq-4-plain"), parts("gptq-4-plain") | {"scales": torch.ones(2, 16)}, "m.scales: shape .* expected"),
        (config("gptq-4-plain"), parts("gptq-4-plain") | {"qzeros": torch.ones(2, 3)}, "expected 4 int32 words per row"),
        (config("awq-plain"), parts("awq-plain") | {"scales": torch.ones(2, 8)}, "m.scales: shape"),
        (config("bnb-nf4-plain"), {k: v for k, v in parts("bnb-nf4-plain").items() if "state" not in k}, "has no quant_state"),
        (config("bnb-nf4-plain"), parts("bnb-nf4-plain") | {"weight.absmax": torch.ones(3)}, "3 scales, expected 32"),
        (config("bnb-nf4-plain"), parts("bnb-nf4-plain") | {"weight": torch.ones(3).byte()}, "3 bytes of codes, expected"),
        (FP8, {"weight": torch.zeros(4, 4), "weight_scale_inv": torch.ones(1, 1)}, "expected float8_e4m3fn"),
        (FP8, {"weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 1)}, "2 scales for a weight"),
        (MODELOPT, {"weight": torch.zeros(4, 8), "weight_scale": torch.ones(4, 1), "weight_scale_2": torch.ones(1)}, "expected uint8"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(settings, tensors, said):
    with pytest.raises(InputError, match=said) as found:
        read(settings, tensors)
    assert "\n" not in str(found.value)


def test_folders_that_hold_something_else(tmp_path):
    with pytest.raises(InputError, match="says AWQ gemm, but holds no tensors qweight"):
        open_checkpoint(folder(tmp_path / "a", config("awq-plain"), NORM))
    broken = {f"m.{n}": t for n, t in parts("awq-plain").items() if n != "scales"} | {
        f"n.{n}": t for n, t in parts("awq-plain").items()
    }
    with pytest.raises(InputError, match=r"m\.qweight holds codes \(torch\.int32\) without scales"):
        open_checkpoint(folder(tmp_path / "b", config("awq-plain"), broken))
    (tmp_path / "a" / "config.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        open_checkpoint(tmp_path / "a")
