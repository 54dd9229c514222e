"""Recipes that narrow cached keys and values: streamed, in memory and reloaded alike; scales, bytes, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tests.ptq.architectures import TABLE, built
from tests.ptq.folders import configured, logits, quick, saved
from tests.ptq.reloading import theirs

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.evaluate import predictions
from narrowcast.io.quantized import remembered_cache
from narrowcast.ptq import CacheScheme, kv_peaks, quantize_model
from narrowcast.ptq.folder import QuantizeConfig, layout_of, plan_folder, quantize_folder
from narrowcast.ptq.pretrained import open_model
from narrowcast.quantize import cast

BY_NAME = {a.name: a for a in TABLE}
LLAMA = BY_NAME["llama"]
FP8, SORTED = "w8a8-fp8-kv-fp8", "w4a16-gptq-g32-kv-k4v8"
BLOCKS = CacheScheme(cast("int4_full/1x4/e8m0"), cast("int4/row/float16"), ordered=True)
TEXT = [LLAMA.inputs(seed)["input_ids"] for seed in range(4)]


def in_memory(name, recipe, batches):
    model = built(BY_NAME[name])
    quantize_model(model, recipe, batches)
    return model


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("llama", FP8), ("llama", SORTED), ("qwen", SORTED), ("gpt2", FP8), ("mixtral", FP8), ("phi", SORTED)],
)
def test_streamed_in_memory_and_reloaded_give_the_same_bits(name, recipe, tmp_path: Path) -> None:
    chosen, inputs = quick(recipe), BY_NAME[name].inputs(99)
    folder = saved(BY_NAME[name], tmp_path / "model")
    quantize_folder(QuantizeConfig(folder, chosen, batches=TEXT[:2]), tmp_path / "out")
    model = in_memory(name, chosen, TEXT[:2])
    expected = logits(model, inputs)
    again = nc.load(tmp_path / "out")
    assert torch.equal(logits(again, inputs), expected)
    assert not torch.equal(logits(nc.load(tmp_path / "out", kv=False), inputs), expected)
    for one, other in zip(remembered_cache(again), remembered_cache(model), strict=True):
        assert one.spec == other.spec
        assert one.order is other.order is None or torch.equal(one.order, other.order)
    said = (
        "keys int4_full/1x32+pad/e8m0, channels in order; values int8" if recipe == SORTED else "keys and values e4m3"
    )
    assert said in nc.describe(tmp_path / "out")


def test_fp8_scales_reach_compressed_tensors_and_come_back(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model", torch.bfloat16)
    layout = layout_of("compressed-tensors")
    report = quantize_folder(QuantizeConfig(folder, FP8, batches=TEXT[:2], layout=layout), tmp_path / "out")
    assert any("cached keys and values stay wide in transformers" in note for note in report["plan"]["notes"])
    scheme = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert scheme == {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    wide, loaded = nc.load(tmp_path / "out", kv=False), nc.load(tmp_path / "out")
    expected, inputs = logits(loaded, LLAMA.inputs(99)), LLAMA.inputs(99)
    assert torch.equal(logits(theirs(tmp_path / "out", type(built(LLAMA))), inputs), logits(wide, inputs))
    assert not torch.equal(logits(wide, inputs), expected)
    nc.save_pretrained(loaded, tmp_path / "again")  # what was read is written again
    assert torch.equal(logits(nc.load(tmp_path / "again"), inputs), expected)


def test_a_static_scale_is_that_of_the_quantized_models_keys() -> None:
    """Those of the first layer, whose input no cache has touched."""
    model = in_memory("llama", FP8, TEXT[:2])
    plain = built(LLAMA)
    quantize_model(plain, "w8a8-fp8", [])
    name, (keys, values) = next(iter(kv_peaks(plain, TEXT[:2]).items()))
    spec = remembered_cache(model)[0].spec
    assert spec.module == name
    assert [spec.key.scale.fixed, spec.value.scale.fixed] == [float(torch.tensor(x) / 448) for x in (keys, values)]


def test_each_head_is_ordered_by_its_own_calibration_and_what_follows_sees_the_cache() -> None:
    recipe = replace(quick("w4a16-rtn-g32"), kv=BLOCKS)
    model, plain = in_memory("llama", recipe, TEXT[:2]), built(LLAMA)
    quantize_model(plain, "w4a16-rtn-g32", [])
    with torch.no_grad():
        keys = [plain(input_ids=b, use_cache=True).past_key_values.layers[0].keys for b in TEXT[:2]]
    amax = torch.cat(keys).abs().amax((0, 2))
    order = remembered_cache(model)[0].order
    assert bool((amax.gather(1, order).diff(dim=1) <= 0).all()) and order.sort(1).values.tolist() == [[*range(16)]] * 2
    static = replace(recipe, kv=CacheScheme(cast("e2m1fn/tensor/divide-fp32"), None, static=True))
    scales = [one.spec.key.scale.fixed for one in remembered_cache(in_memory("llama", static, TEXT[:2]))]
    assert scales[1] != pytest.approx(list(kv_peaks(plain, TEXT[:2]).values())[1][0] / 6, rel=1e-4)


@pytest.mark.parametrize("recipe", [FP8, SORTED])
def test_the_report_and_evaluate_judge_with_the_cache_on(recipe, tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    config = QuantizeConfig(folder, quick(recipe), batches=TEXT[:2], held=TEXT[2:])
    found = quantize_folder(config, tmp_path / "out")["judgement"]
    losses = {}
    for kv in (True, False):
        model = open_model(tmp_path / "out")[0] if kv else nc.load(tmp_path / "out", kv=False)
        made = predictions(model, TEXT[2:])
        losses[kv] = float(made.losses.sum() / made.tokens.sum())
    assert found["after"] == pytest.approx(losses[True], abs=1e-6) and abs(losses[True] - losses[False]) > 1e-5


def test_bytes_of_a_token(tmp_path: Path) -> None:
    """Llama 3 8B: 32 layers, 8 key heads of 128; 4.25 bits a key, 8 bits a value and 16 for each head's scale."""
    folder = saved(LLAMA, tmp_path / "model", torch.bfloat16)
    plans = {name: plan_folder(QuantizeConfig(folder, name)) for name in (FP8, SORTED, "w8a8-fp8")}
    assert {name: plan.cached for name, plan in plans.items()} == {
        FP8: (256, 128), SORTED: (256, 2 * 2 * (32 * 4 + 8 + 16 * 8 + 16) / 8), "w8a8-fp8": (256, 256),
    }  # fmt: skip
    assert "cached keys and values e4m3fn, scales calibrated" in str(plans[FP8].rows)
    big = transformers.LlamaConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(big)
    from narrowcast.ptq.cache import token_bytes

    assert token_bytes(model, nc.ptq.recipe(FP8).kv, 2) == (131072, 65536)
    assert token_bytes(model, nc.ptq.recipe(SORTED).kv, 2) == (131072, 32 * 8 * (128 * 4.25 / 8 + 130))


@pytest.mark.parametrize(
    ("name", "recipe", "layout", "said"),
    [
        ("bert", FP8, "narrowcast", "narrows cached keys and values, and model_type 'bert' caches none"),
        ("llama", replace(quick(FP8), kv=BLOCKS), "compressed-tensors", "channels of keys in an order of their own"),
        (
            "llama",
            replace(quick(FP8), kv=CacheScheme(cast("int4/1x32/fp32"))),
            "narrowcast",
            "tile 1x32 does not divide its last axis",
        ),
        ("gemma", FP8, "narrowcast", "attention takes softcap"),
    ],
)
def test_what_cannot_be_is_refused(name, recipe, layout, said, tmp_path: Path) -> None:
    folder = saved(BY_NAME[name], tmp_path / "model")
    config = QuantizeConfig(folder, recipe, batches=TEXT[:1], layout=layout_of(layout))
    with pytest.raises(InputError, match=said):
        quantize_folder(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_its_order_and_one_of_a_newer_layout(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    quantize_folder(QuantizeConfig(folder, replace(quick(SORTED), kv=BLOCKS), batches=TEXT[:1]), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    settings["cache"][0]["module"] = "model.layers.9.self_attn"
    configured(tmp_path / "out", quantization_config=settings)
    with pytest.raises(InputError, match="order of its keys' channels is missing"):
        nc.load(tmp_path / "out")
    configured(tmp_path / "out", quantization_config=settings | {"version": 3})
    with pytest.raises(InputError, match="layout version 3, expected 1 or 2; update narrowcast"):
        nc.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CacheScheme(cast("e4m3fn/tensor/fp32")), "would need all tokens at once"),
        (lambda: CacheScheme(cast("e4m3fn/row/fp32"), static=True), "can be fixed"),
        (lambda: CacheScheme(cast("int4/1x32/e8m0/stochastic")), "draws"),
        (lambda: CacheScheme(None, cast("int8/row/fp32"), ordered=True), "is for narrow keys"),
    ],
)
def test_impossible_caches_are_refused(make, said) -> None:
    with pytest.raises(InputError, match=said):
        make()
