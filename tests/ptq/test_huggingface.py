"""`from_pretrained(..., quantization_config=nc.HFConfig(recipe))`, and folders made plain again."""

import json

import pytest
import torch
import transformers
from tests.ptq.architectures import TABLE, built, tokens
from tests.ptq.folders import logits, saved

import narrowcast as nc
from narrowcast.cli import run
from narrowcast.errors import InputError
from narrowcast.models.quiet import quiet

LLAMA = TABLE[0]


def loaded(path, config, **more):
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(path, quantization_config=config, **more)


@pytest.mark.parametrize("recipe", ["nvfp4", "w8a8-fp8", "int4/1x32/fp32"])
def test_loading_quantizes(recipe, tmp_path):
    folder = saved(LLAMA, tmp_path / "model")
    found = loaded(folder, nc.HFConfig(recipe))
    model = built(LLAMA)
    nc.ptq.quantize_model(model, recipe)
    assert torch.equal(logits(found, tokens(9)), logits(model, tokens(9)))
    assert found.is_quantized and found.config.quantization_config.to_dict()["quant_method"] == "narrowcast"


def test_loading_calibrates_and_what_was_loaded_can_be_saved_for_others(tmp_path):
    folder = saved(LLAMA, tmp_path / "model", torch.bfloat16)
    batches = [tokens(s)["input_ids"] for s in range(2)]
    found = loaded(folder, nc.HFConfig("nvfp4", batches, layout="compressed-tensors"), dtype=torch.bfloat16)
    nc.save_pretrained(found, tmp_path / "out")
    with quiet():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(logits(again, tokens(9)), logits(found, tokens(9)))


def test_bad_configs():
    with pytest.raises(InputError, match="unknown post-training recipe 'nvfp5'; nearest: nvfp4"):
        nc.HFConfig("nvfp5")
    with pytest.raises(InputError, match="recipe w4a16-gptq needs calibration data; give calibration="):
        nc.HFConfig("w4a16-gptq")


def test_our_own_layout_is_not_quantized_a_second_time(tmp_path):
    model = built(LLAMA)
    nc.ptq.quantize_model(model, "w4a16-rtn-g32")
    nc.save_pretrained(model, tmp_path / "model", layout="narrowcast")
    with pytest.raises(InputError, match=r"load it with nc\.load\(path\)"), quiet():
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("layout", ["compressed-tensors", "narrowcast"])
def test_a_folder_made_plain_again(layout, tmp_path, capsys):
    model = built(LLAMA)
    nc.ptq.quantize_model(model, "w4a16-rtn-g32")
    folder, plain = tmp_path / "model", tmp_path / "plain"
    nc.save_pretrained(model, folder, layout=layout)
    assert run(["formats", "dequantize", str(folder), "--out", str(plain)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{layout}: int4") and "14 weights" in said and "written: " in said
    with quiet():
        again = transformers.AutoModelForCausalLM.from_pretrained(plain)
    assert torch.equal(logits(again, tokens(9)), logits(model, tokens(9)))
    assert run(["formats", "dequantize", str(folder), "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert (payload["layout"], payload["weights"], payload["out"]) == (layout, 14, None)


def test_dequantize_refuses_in_one_line(tmp_path, capsys):
    plain = saved(LLAMA, tmp_path / "plain")
    rotated = built(LLAMA)
    nc.ptq.quantize_model(rotated, "mxfp4-mr-gptq", [tokens(0)])
    nc.save_pretrained(rotated, tmp_path / "rotated", layout="narrowcast")
    cases = [
        ([str(plain), "--out", str(tmp_path / "x")], "is not quantized; there is nothing to dequantize"),
        ([str(tmp_path / "rotated"), "--out", str(tmp_path / "x")], "is stored rotated (hadamard32)"),
        ([str(tmp_path / "rotated"), "--out", str(plain)], "exists already"),
        ([str(plain), "--dtype", "float8"], "--dtype float8: unknown; nearest: float"),
        ([str(tmp_path / "none")], "no such folder"),
    ]
    for args, message in cases:
        assert run(["formats", "dequantize", *args]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert run(["formats", "dequantize", str(plain)]) == 0
    assert capsys.readouterr().out.startswith("not quantized: 21 tensors wide")
