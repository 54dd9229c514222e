"""Saved folders: names, shards, what each recipe becomes, what is refused; and from one layout to another."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import transformers
from tests.ptq.architectures import SMALL, built, tokens
from tests.ptq.reloading import ARCHITECTURES, BF16, FP16, FP32, SCHEMES, logits, quantized, scheme, theirs

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.io.compressed import CompressedTensors
from narrowcast.io.compressed.words import from_words, to_words
from narrowcast.io.pretrained import wide_modules
from narrowcast.models.quiet import quiet
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.part import specs_of
from narrowcast.ptq.pretrained import open_model
from narrowcast.ptq.served import served
from narrowcast.ptq.targets import find_targets

#: why tiny Llama's K = 64 and 128 under bfloat16 cannot be written for others; and which can
REFUSED = {
    **dict.fromkeys(("mxfp4-mr-gptq", "nvfp4-mr-gptq"), "its input is rotated"),
    **dict.fromkeys(("w4a16-rtn", "w4a16-gptq", "w4a16-awq"), "do not divide its K = 64"),
    "w8a8-fp8-block": "do not divide its K = 64",
    "w8a8-e5m2": "not e5m2",
    **dict.fromkeys(("w8a8-e3m4-static", "w8a8-e3m4-e4m3"), "not e3m4"),
    "w4a16-nf4-double": "not nf4",
    **dict.fromkeys(("w4a16-fp4-afpq", "w4a16-nf4-afpq-gptq"), "a scale for each sign"),
}
WRITABLE = [
    "w8a8-fp8", "w8a8-fp8-static", "w8a8-int8", "w8a8-int8-static", "w4a16-rtn-g32", "w4a16-gptq-g32", "w4a16-awq-g32",
    "mxfp4", "mxfp4-gptq", "nvfp4", "nvfp4-gptq",
]  # fmt: skip


@pytest.mark.parametrize("name", [*WRITABLE, *REFUSED])
def test_every_recipe_can_be_written_or_is_refused_with_its_reason(name):
    chosen = served(recipe(name), BF16)
    model = built(ARCHITECTURES["llama"])
    targets, _ = find_targets(model, chosen.keep_wide)
    why = {text for spec in specs_of(targets, chosen) if (text := CompressedTensors(BF16).refusal(spec))}
    assert (REFUSED[name] in "; ".join(why)) if name in REFUSED else not why


def test_names_of_fused_experts_and_of_routers():
    """transformers renames and splits them where it saves; vLLM knows them by those names."""
    for name, first, router in (
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1", "model.layers.0.block_sparse_moe.gate"),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj", "model.layers.0.mlp.gate"),
    ):
        more = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config = transformers.AutoConfig.for_model(name, **SMALL, **more)
        with torch.device("meta"), quiet():
            model = transformers.AutoModelForCausalLM.from_config(config)
        targets, _ = find_targets(model)
        specs = specs_of(targets, SCHEMES["w4a16"])
        layout = CompressedTensors().for_model(model, specs, BF16)
        experts = next(s for s in specs if s.kind == "experts" and "gate_up" in s.name)
        pieces = layout.naming.of(experts)
        half = experts.shape[0] // 2
        assert pieces[0].module == first and len(pieces) == 8
        assert [(p.matrix, p.start, p.stop) for p in pieces[:3]] == [(0, 0, half), (0, half, 2 * half), (1, 0, half)]
        assert router in layout.config(specs, wide_modules(model, specs))["ignore"]


def test_tied_groups_share_their_scales(tmp_path):
    nc.save_pretrained(quantized("llama", SCHEMES["nvfp4"], BF16), tmp_path / "model")
    with safetensors.safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for part in ("weight_global_scale", "input_global_scale"):
            q, k, v = (file.get_tensor(f"model.layers.0.self_attn.{p}_proj.{part}") for p in "qkv")
            gate, up = (file.get_tensor(f"model.layers.1.mlp.{p}_proj.{part}") for p in ("gate", "up"))
            assert q == k == v and gate == up and q != gate


def test_layers_that_vllm_fuses_should_agree(tmp_path):
    model = quantized(
        "llama", replace(SCHEMES["w4a16"], keep_wide=("*lm_head", "*embed*", "*.1.self_attn.k_proj")), FP32
    )
    saved = nc.save_pretrained(model, tmp_path / "model")
    assert "q_proj, k_proj, v_proj as one layer, but those of model.layers.1.self_attn differ" in str(saved)
    ignored = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["ignore"]
    assert ignored == ["model.layers.1.self_attn.k_proj", "lm_head"]
    assert torch.equal(logits(theirs(tmp_path / "model", type(model)), "llama", FP32), logits(model, "llama", FP32))


def test_shards_and_their_index(tmp_path):
    model = quantized("llama", SCHEMES["w4a16"], BF16)
    saved = nc.save_pretrained(model, tmp_path / "model", shard_bytes=20_000)
    files = sorted(p.name for p in (tmp_path / "model").glob("*.safetensors"))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == saved.bytes
    assert torch.equal(logits(theirs(tmp_path / "model", type(model)), "llama", BF16), logits(model, "llama", BF16))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["quantization_config"]["ignore"] == ["lm_head"]


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match=r"quantize it first"):
        nc.save_pretrained(built(ARCHITECTURES["llama"]), tmp_path / "model")
    with pytest.raises(InputError, match=r"c_attn\.weight: Conv1D layers .*8 such layers\); layout 'narrowcast' can"):
        nc.save_pretrained(quantized("gpt2", SCHEMES["w4a16"], FP32), tmp_path / "model")
    with pytest.raises(InputError, match="loaders decode mxfp4-pack-quantized to bfloat16"):
        nc.save_pretrained(quantized("llama", SCHEMES["mxfp4"], FP32), tmp_path / "model")
    model = quantized("llama", SCHEMES["w4a16"], FP32)
    with pytest.raises(InputError, match="unknown layout 'compressed'; nearest: compressed-tensors"):
        nc.save_pretrained(model, tmp_path / "model", layout="compressed")
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        nc.save_pretrained(model, tmp_path / "model")


def test_what_cannot_be_loaded(tmp_path):
    folder = tmp_path / "model"
    nc.save_pretrained(quantized("llama", SCHEMES["w4a16"], BF16), folder)
    whole = (folder / "model.safetensors").read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as found:
            nc.load(folder)
        assert "\n" not in str(found.value)

    with pytest.raises(InputError, match="no such folder"):
        nc.load(tmp_path / "nothing")
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("truncated or not safetensors")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + whole)
    refused("a zip archive, .* refused unread")
    (folder / "model.safetensors").write_bytes(b"\x80\x02" + whole)
    refused("a pickle, refused unread")
    (folder / "model.safetensors").write_bytes(whole)
    settings = json.loads((folder / "config.json").read_text())
    other = settings | {"quantization_config": {"quant_method": "aqlm"}}
    (folder / "config.json").write_text(json.dumps(other))
    refused("quant_method 'aqlm' is no layout known here; known: ")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "quantization_config"}))
    refused(r"weight_packed holds codes \(torch.int32\) without scales")
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["OurOwnForCausalLM"]}))
    refused("transformers has no class 'OurOwnForCausalLM'")
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = safetensors.torch.load(whole)
    tensors["model.layers.1.mlp.up_proj.weight_scale"][3] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(r"weight model\.layers\.1\.mlp\.up_proj decodes to NaN")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    refused("do not fit config.json: missing model.layers.2")
    shutil.rmtree(folder)


@pytest.mark.parametrize("chosen", ["fp8-static", "int8", "w3a16", "nvfp4", "mxfp8"])
def test_what_was_loaded_is_saved_again_to_the_same_bytes(chosen, tmp_path):
    nc.save_pretrained(quantized("llama", SCHEMES[chosen], BF16), tmp_path / "one")
    nc.save_pretrained(nc.load(tmp_path / "one"), tmp_path / "two")
    first, second = (safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor.float(), second[name].float()), name
    configs = [json.loads((tmp_path / n / "config.json").read_text())["quantization_config"] for n in ("one", "two")]
    assert configs[0] == configs[1]


def gptq_folder(path, target) -> None:
    """Rewrite a compressed-tensors folder of symmetric int4 in GPTQ's layout, version 1."""
    shutil.copytree(path, target)
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    for name in [n for n in tensors if n.endswith("weight_packed")]:
        module = name.removesuffix(".weight_packed")
        packed, scale, shape = (tensors.pop(f"{module}.weight_{part}") for part in ("packed", "scale", "shape"))
        tensors[f"{module}.qweight"] = to_words(
            from_words(packed, 4, int(shape[1])).mT.contiguous().mT, 4
        ).mT.contiguous()
        tensors[f"{module}.scales"] = scale.mT.contiguous()
        zeros = torch.full((scale.shape[1], int(shape[0])), 7)  # the middle, 8, less one
        tensors[f"{module}.qzeros"] = to_words(zeros, 4)
    safetensors.torch.save_file(tensors, target / "model.safetensors", {"format": "pt"})
    settings = json.loads((target / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (target / "config.json").write_text(json.dumps(settings))


def test_from_gptq_to_compressed_tensors(tmp_path):
    model = quantized("llama", SCHEMES["w4a16"], FP16)
    nc.save_pretrained(model, tmp_path / "one")
    gptq_folder(tmp_path / "one", tmp_path / "gptq")
    assert nc.describe(tmp_path / "gptq").startswith("GPTQ v1: int4 in groups of 32, ")
    loaded = nc.load(tmp_path / "gptq")
    assert torch.equal(logits(loaded, "llama", FP16), logits(model, "llama", FP16))
    nc.save_pretrained(loaded, tmp_path / "two")
    assert torch.equal(logits(theirs(tmp_path / "two", type(model)), "llama", FP16), logits(model, "llama", FP16))


def test_evaluating_takes_folders_of_any_precision(tmp_path):
    model = quantized("llama", SCHEMES["fp8"], FP32)
    nc.save_pretrained(model, tmp_path / "model")
    with quiet():
        built(ARCHITECTURES["llama"]).save_pretrained(tmp_path / "plain")
    for folder, expected in ((tmp_path / "model", model), (tmp_path / "plain", built(ARCHITECTURES["llama"]))):
        found, tokenizer = open_model(folder)
        assert tokenizer is None and torch.equal(logits(found.eval(), "llama", FP32), logits(expected, "llama", FP32))


def test_an_unquantized_folder_loads_too(tmp_path):
    model = built(ARCHITECTURES["llama"])
    with quiet():
        model.save_pretrained(tmp_path / "plain")
    assert nc.describe(tmp_path / "plain").startswith("not quantized: 21 tensors wide (float32, ")
    assert torch.equal(nc.load(tmp_path / "plain")(**tokens(5)).logits, model(**tokens(5)).logits)


@pytest.mark.parametrize("weight", ["e4m3fn/row/fp32", "e2m1fn/1x32/e8m0", "int8/1x32/fp32"])
def test_fused_experts_in_other_formats(weight, tmp_path):
    model = quantized("mixtral", scheme(weight), BF16)
    nc.save_pretrained(model, tmp_path / "model")
    expected = logits(model, "mixtral", BF16)
    assert torch.equal(logits(theirs(tmp_path / "model", type(model)), "mixtral", BF16), expected)
    assert torch.equal(logits(nc.load(tmp_path / "model"), "mixtral", BF16), expected)


def test_fused_experts_that_transformers_does_not_load(tmp_path):
    with pytest.raises(InputError, match="transformers decodes fused experts without NVFP4's global scale"):
        nc.save_pretrained(quantized("mixtral", SCHEMES["nvfp4a16"], BF16), tmp_path / "model")
    saved = nc.save_pretrained(quantized("mixtral", scheme("e4m3fn/1x32/e8m0"), BF16), tmp_path / "model")
    assert "loads no fused experts in FP8 with blocks or MXFP8" in str(saved)
