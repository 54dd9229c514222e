"""Quantized in memory, saved, loaded by `transformers` and by us: the same logits, bit for bit."""

import os
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from tests.ptq.architectures import built, tokens
from tests.ptq.folders import quick, saved
from tests.ptq.reloading import ARCHITECTURES, BF16, FP32, SCHEMES, inputs, logits, quantized, scheme, theirs

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.models.quiet import quiet
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.folder import QuantizeConfig, layout_of, quantize_folder
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.served import served
from narrowcast.quantize import cast

PLAIN = ("fp8", "fp8-static", "fp8-block", "int8", "int8-static", "w8a16", "w4a16", "w3a16", "w4afp8", "w8a8-zero")
BLOCK = ("nvfp4", "nvfp4a16", "mxfp4", "mxfp8")
#: what every architecture is exported as; OPT, BERT and ViT have inputs of two axes (`io.compressed.layout`)
CHOSEN = {
    "qwen": ("int8", FP32), "mistral": ("nvfp4", BF16), "gemma": ("mxfp4", BF16), "phi": ("fp8-block", FP32),
    "opt": ("fp8-static", FP32), "bert": ("w4a16", FP32), "vit": ("mxfp8", BF16), "mixtral": ("w4a16", BF16),
}  # fmt: skip
CACHE = "cache" if "cache" in signature(transformers.LlamaForCausalLM.forward).parameters else "past_key_values"


def check_same(name: str, chosen: PtqRecipe, dtype: torch.dtype, path: Path) -> None:
    model = quantized(name, chosen, dtype)
    expected = logits(model, name, dtype)
    nc.save_pretrained(model, path)
    assert torch.equal(logits(theirs(path, type(model)), name, dtype), expected)
    assert torch.equal(logits(nc.load(path), name, dtype), expected)


@pytest.mark.parametrize(
    ("chosen", "dtype"), [*((c, d) for c in PLAIN for d in (FP32, BF16)), *((c, BF16) for c in BLOCK)]
)
def test_every_layout_gives_the_same_logits(chosen, dtype, tmp_path):
    check_same("llama", SCHEMES[chosen], dtype, tmp_path / "model")


@pytest.mark.parametrize("name", CHOSEN)
def test_every_architecture_gives_the_same_logits(name, tmp_path):
    chosen, dtype = CHOSEN[name]
    check_same(name, SCHEMES[chosen], dtype, tmp_path / "model")


@pytest.mark.parametrize("name", ["w4a16-awq-g32", "nvfp4-gptq", "w8a8-int8"])
def test_recipes_with_solvers_and_balance_survive(name, tmp_path):
    chosen = recipe(name)
    chosen = replace(chosen, search=replace(chosen.search, steps=4)) if hasattr(chosen.search, "steps") else chosen
    check_same("llama", chosen, BF16, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "chosen", "dtype"),
    [
        ("llama", recipe("mxfp4-mr-gptq"), FP32), ("llama", SCHEMES["nvfp4"], BF16), ("gpt2", SCHEMES["w4a16"], FP32),
        ("resnet", scheme("e3m4/1x32+pad/fp32"), FP32), ("mixtral", scheme("posit8_1/row/fp32-headroom22"), FP32),
        ("vit", SCHEMES["int8-static"], BF16),
    ],
)  # fmt: skip
def test_our_own_layout_holds_every_cast(name, chosen, dtype, tmp_path):
    model = quantized(name, chosen, dtype)
    nc.save_pretrained(model, tmp_path / "model", layout="narrowcast")
    assert torch.equal(logits(nc.load(tmp_path / "model"), name, dtype), logits(model, name, dtype))
    assert nc.describe(tmp_path / "model").startswith(f"narrowcast: {served(chosen, dtype).scheme.weight}, inputs ")


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("chosen", [SCHEMES["w4a16-zero"], SCHEMES["w3a16-zero"], quick("w4a16-zero-gptq-g32")])
def test_packed_zero_points(chosen, dtype, tmp_path, monkeypatch):
    """compressed-tensors 0.20 forgets to pack them while a model is on the meta device: around that, and mended."""
    model = quantized("llama", chosen, dtype)
    expected, saved = logits(model, "llama", dtype), nc.save_pretrained(model, tmp_path / "model")
    assert "dequantize=True" in str(saved) and "with zero points, inputs wide" in nc.describe(tmp_path / "model")
    assert torch.equal(logits(nc.load(tmp_path / "model"), "llama", dtype), expected)
    asked = transformers.CompressedTensorsConfig(dequantize=True)
    dense = theirs(tmp_path / "model", type(model), quantization_config=asked)
    assert torch.equal(logits(dense, "llama", dtype), expected)
    original = PackedQuantizationCompressor.compress.__func__

    def compress(cls, state, scheme):
        found = original(cls, state, scheme)
        zero = found["weight_zero_point"]
        words = -(-zero.shape[0] * scheme.weights.num_bits // 32)
        return found | {"weight_zero_point": torch.empty(words, zero.shape[1], dtype=torch.int32, device="meta")}

    monkeypatch.setattr(PackedQuantizationCompressor, "compress", classmethod(compress))
    assert torch.equal(logits(theirs(tmp_path / "model", type(model)), "llama", dtype), expected)


def test_dense_weights_are_ours_to_bfloat16(tmp_path):
    model = quantized("llama", SCHEMES["nvfp4"], BF16)
    nc.save_pretrained(model, tmp_path / "model")
    dense = theirs(
        tmp_path / "model", type(model), quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    values = dict(model.named_parameters())
    assert all(torch.equal(p, values[n]) for n, p in dense.named_parameters())


def test_scales_of_cached_keys_and_values_do_not_disturb_loading(tmp_path):
    """vLLM reads them; compressed-tensors 0.20 looks for a cache under another name than transformers 5.24 gives it."""
    model = quantized("llama", SCHEMES["fp8"], FP32)
    batches = [inputs("llama", s, FP32)["input_ids"] for s in (0, 1)]
    found = nc.ptq.kv_peaks(model, batches)
    with torch.no_grad():
        caches = [getattr(model(b, use_cache=True), CACHE) for b in batches]
    top = (
        max(float(c.layers[1].keys.abs().max()) for c in caches),
        max(float(c.layers[1].values.abs().max()) for c in caches),
    )
    assert list(found) == [f"model.layers.{i}.self_attn" for i in (0, 1)] and found["model.layers.1.self_attn"] == top
    kv = {"model.layers.0.self_attn": (448.0, 7.0), "model.layers.1.self_attn": (44.8, 0.7)}
    saved = nc.save_pretrained(model, tmp_path / "model", kv=kv)
    assert "cached keys and values" in str(saved) and "keys and values e4m3fn" in nc.describe(tmp_path / "model")
    with safetensors.safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        names = [f"model.layers.1.self_attn.{part}_scale" for part in "kv"]
        assert [file.get_tensor(n).tolist() for n in names] == [pytest.approx([0.1]), pytest.approx([0.0015625])]
    expected = logits(model, "llama", FP32)
    assert torch.equal(logits(theirs(tmp_path / "model", type(model)), "llama", FP32), expected)
    assert torch.equal(logits(nc.load(tmp_path / "model", kv=False), "llama", FP32), expected)

    class Rounding(transformers.DynamicCache):  # the same by another way: as the keys and values enter the cache
        def update(self, keys, values, number, *args, **kwargs):
            tops = kv[f"model.layers.{number}.self_attn"]
            rules = [cast("e4m3fn/tensor/divide-fp32").scale.made_for(top, cast("e4m3fn").format) for top in tops]
            rounded = [cast(f"e4m3fn/tensor/{r}").apply(x) for r, x in zip(rules, (keys, values), strict=True)]
            return super().update(*rounded, number, *args, **kwargs)

    narrowed = logits(nc.load(tmp_path / "model"), "llama", FP32)
    assert torch.allclose(narrowed, logits(model, "llama", FP32, **{CACHE: Rounding()}), atol=1e-6)
    assert (narrowed - expected).abs().max() > 1e-4


@pytest.mark.skipif("NARROWCAST_DATA" not in os.environ, reason="NARROWCAST_DATA names no folder with real models")
@pytest.mark.parametrize("name", ["w8a8-fp8", "w8a8-int8-static", "w8a8-fp8-block"])
def test_a_real_language_model(name, tmp_path):
    """stories260K: float32, grouped queries, K = 172 which 128 does not divide."""
    folder = Path(os.environ["NARROWCAST_DATA"]) / "lm-stories260K" / "hf"
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    text = torch.arange(3, 503).view(4, -1)
    chosen = served(recipe(name), FP32)
    if name == "w8a8-fp8-block":  # the input's groups of 128 divide neither K
        nc.ptq.quantize_model(model, chosen, [text])
        with pytest.raises(InputError, match=r"input tiles of 1x128\+pad do not divide its K = 64"):
            nc.save_pretrained(model, tmp_path / "model")
        return
    nc.ptq.quantize_model(model, chosen, [text])
    nc.save_pretrained(model, tmp_path / "model")
    with torch.no_grad(), quiet():
        expected = model(text).logits
        assert torch.equal(theirs(tmp_path / "model", type(model))(text).logits, expected)
        assert torch.equal(nc.load(tmp_path / "model")(text).logits, expected)


@pytest.mark.parametrize(("name", "chosen"), [("llama", "w8a8-int8"), ("llama", "nvfp4"), ("mixtral", "w4a16-rtn-g32")])
def test_a_folder_becomes_one_that_transformers_loads(name, chosen, tmp_path):
    """`narrowcast quantize --layout compressed-tensors`: the recipe takes on the loaders' conventions."""
    architecture = ARCHITECTURES[name]
    folder = saved(architecture, tmp_path / "model", BF16)
    config = QuantizeConfig(folder, chosen, batches=[architecture.inputs(0)], layout=layout_of("compressed-tensors"))
    report = quantize_folder(config, tmp_path / "out")
    assert report["layout"] == "compressed-tensors" and nc.describe(tmp_path / "out").startswith("compressed-tensors: ")
    loaded = theirs(tmp_path / "out", type(built(architecture)))
    assert torch.equal(logits(loaded, name, BF16), logits(nc.load(tmp_path / "out"), name, BF16))
    assert loaded.dtype == BF16


def test_a_folder_that_the_layout_cannot_hold(tmp_path):
    folder = saved(ARCHITECTURES["llama"], tmp_path / "model")
    config = QuantizeConfig(folder, "mxfp4", batches=[tokens(0)], layout=layout_of("compressed-tensors"))
    with pytest.raises(InputError, match=r"cannot hold it: loaders decode mxfp4.* make it bfloat16 .*; take --layout"):
        quantize_folder(config, tmp_path / "out")
    quantize_folder(replace(config, dtype=BF16), tmp_path / "out")  # what stays wide becomes bfloat16 too
    assert theirs(tmp_path / "out", transformers.LlamaForCausalLM).dtype == BF16
    with pytest.raises(InputError, match="unknown layout 'compressed'; nearest: compressed-tensors"):
        layout_of("compressed")
