"""A model folder, quantized one block at a time: the same bits as in memory, and the same again from the files."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests.ptq.architectures import TABLE, built
from tests.ptq.folders import bytes_of, configured, edited, logits, quick, saved

from narrowcast.errors import InputError
from narrowcast.io.quantized import remembered
from narrowcast.models.hollow import hollow_from_config
from narrowcast.ptq import quantize_model
from narrowcast.ptq.folder import QuantizeConfig, plan_folder, quantize_folder
from narrowcast.ptq.load import load_quantized

every_architecture = pytest.mark.parametrize("architecture", TABLE, ids=lambda a: a.name)
LLAMA = TABLE[0]


def quantized(architecture, tmp_path: Path, name: str, count: int = 2, **options):
    folder = saved(architecture, tmp_path / "model", **options)
    batches = [architecture.inputs(seed) for seed in range(count)]
    config = QuantizeConfig(folder, quick(name), batches=batches)
    return quantize_folder(config, tmp_path / "out"), batches


@every_architecture
def test_streaming_gives_the_bits_of_quantizing_in_memory(architecture, tmp_path: Path) -> None:
    report, batches = quantized(architecture, tmp_path, "w4a16-gptq-g32")
    model = built(architecture)
    found = quantize_model(model, quick("w4a16-gptq-g32"), batches)
    loaded, _ = load_quantized(tmp_path / "out")
    expected = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert torch.equal(logits(loaded, architecture.inputs(99)), logits(model, architecture.inputs(99)))
    assert [row["name"] for row in report["layers"]] == [row.name for row in found.narrowed]
    assert report["bytes_after"] == report["plan"]["bytes_after"]


@pytest.mark.parametrize("name", ["w8a8-int8", "w4a16-awq-g32", "nvfp4-mr-gptq", "w8a8-fp8-static", "mxfp4",
                                  "w4a16-zero-gptq-g32"])  # fmt: skip
def test_inputs_and_balanced_weights_come_back_too(name: str, tmp_path: Path) -> None:
    _, batches = quantized(LLAMA, tmp_path, name)
    model = built(LLAMA)
    quantize_model(model, quick(name), batches)
    loaded, _ = load_quantized(tmp_path / "out")
    assert torch.equal(logits(loaded, LLAMA.inputs(99)), logits(model, LLAMA.inputs(99)))
    for one, other in zip(remembered(loaded), remembered(model), strict=True):
        assert one.spec == other.spec
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(one.matrices, other.matrices, strict=True))


def test_what_is_stored_decodes_to_what_runs_where_factors_moved() -> None:
    model = built(LLAMA)
    quantize_model(model, quick("w8a8-int8"), [LLAMA.inputs(0)])  # up_proj makes the input of down_proj
    for layer in remembered(model):
        assert torch.equal(layer.matrices[0].dequantize(), model.get_parameter(layer.spec.name)), layer.spec.name


def test_shards_and_16_bits_are_read_and_16_bits_are_written(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model", torch.bfloat16, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    quantize_folder(QuantizeConfig(folder, quick("w8a8-int8"), batches=[LLAMA.inputs(0)]), tmp_path / "out")
    loaded, _ = load_quantized(tmp_path / "out")
    norm = dict(loaded.named_parameters())["model.layers.0.input_layernorm.weight"]
    assert not torch.equal(norm, torch.ones_like(norm)) and torch.equal(norm, norm.bfloat16().float())
    size = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert size < sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def test_a_text_is_judged_before_and_after(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    tokens = [LLAMA.inputs(seed)["input_ids"] for seed in range(3)]
    before = built(LLAMA)
    report = quantize_folder(QuantizeConfig(folder, "w4a16-rtn-g32", batches=tokens[:1]), tmp_path / "out")
    assert report["judgement"] is None  # nothing was set apart
    from narrowcast.io.hollow import open_hollow
    from narrowcast.metrics import mean_loss
    from narrowcast.ptq.calibration import Calibration
    from narrowcast.ptq.stream import Streamer

    data = Calibration((tokens[0],), (tokens[1], tokens[2]))
    found = Streamer(open_hollow(folder), quick("w4a16-rtn-g32"), data).run(lambda piece: None)
    after, _ = load_quantized(tmp_path / "out")
    assert found is not None and found.tokens == 2 * 2 * 23
    assert found.before == pytest.approx(mean_loss(before, data.held), rel=1e-6)
    assert found.after == pytest.approx(mean_loss(after, data.held), rel=1e-6)
    assert found.divergence > 0


def test_the_model_writes_its_own_calibration_and_the_same_again(tmp_path: Path) -> None:
    from narrowcast.ptq.calibration import CalibrationConfig, from_model

    config = CalibrationConfig(samples=5, length=12, held=2, seed=3)
    one, other = from_model(config, built(LLAMA)), from_model(config, built(LLAMA))
    assert one.digest == other.digest != from_model(dataclasses.replace(config, seed=4), built(LLAMA)).digest
    assert sum(len(b) for b in one.batches) == 5 and one.held[0].shape == (2, 12)
    bos = built(LLAMA).config.bos_token_id
    assert all(bool((b[:, 0] == bos).all()) for b in one.batches)


def test_an_architecture_that_nobody_knows_is_quantized_by_rule(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    configured(folder, model_type="martian", architectures=["MartianForCausalLM"])
    report = quantize_folder(QuantizeConfig(folder, "w4a16-rtn-g32"), tmp_path / "out")
    known = quantize_folder(
        QuantizeConfig(saved(LLAMA, tmp_path / "known"), "w4a16-rtn-g32", batches=[]), tmp_path / "other"
    )
    assert {row["name"]: row["bytes"] for row in report["layers"]} == {r["name"]: r["bytes"] for r in known["layers"]}
    assert any("'martian' is unknown to transformers" in note for note in report["plan"]["notes"])
    with pytest.raises(InputError, match="needs calibration, and model_type 'martian'"):
        quantize_folder(QuantizeConfig(folder, "w4a16-gptq-g32"), tmp_path / "third")
    with pytest.raises(InputError, match="does not know model_type 'martian'"):
        load_quantized(tmp_path / "out")


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    tied = dataclasses.replace(LLAMA, make=lambda: _tied())
    folder = saved(tied, tmp_path / "model")
    quantize_folder(QuantizeConfig(folder, "w4a16-rtn-g32", batches=[]), tmp_path / "out")
    loaded, _ = load_quantized(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]


def _tied() -> torch.nn.Module:
    import transformers as hf
    from tests.ptq.architectures import SMALL

    return hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**SMALL, tie_word_embeddings=True))


def test_an_8b_model_is_planned_from_its_headers(tmp_path: Path) -> None:
    """16 GB that are not there: a sparse file with the right header."""
    import transformers as hf

    wide, inner = 4096, 14336
    config = hf.LlamaConfig(
        hidden_size=wide, intermediate_size=inner, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    table, place = {}, 0
    for name, parameter in hollow_from_config(config).named_parameters():
        end = place + 2 * parameter.numel()
        table[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(table).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    plan = plan_folder(QuantizeConfig(tmp_path, "w4a16-gptq"))
    linear = 32 * (2 * wide * wide + 2 * 1024 * wide + 3 * wide * inner)
    assert plan.bytes_before == 2 * (linear + 2 * 128256 * wide + 65 * wide)
    assert plan.bytes_before - plan.bytes_after == 2 * linear - linear // 2 - 4 * linear // 128
    assert plan.block_bytes == 4 * (linear // 32 + 2 * wide)
    read = linear * 4.25 / 8 + 2 * 128256 * wide  # a token reads every weight but the embedding once
    assert plan.after.decode == pytest.approx(read / 3.35e12 + (7 * 32 + 1) * 3e-6, rel=0.01)
    rows = {row.name: row for row in plan.rows}
    assert rows["model.layers.3.self_attn.v_proj.weight"].group == "model.layers.3.self_attn.q_proj.weight"


def test_the_plan_says_which_rule_matched_nothing(tmp_path: Path) -> None:
    gpt2 = next(a for a in TABLE if a.name == "gpt2")
    plan = plan_folder(QuantizeConfig(saved(gpt2, tmp_path / "model"), "w4a16-rtn-g32"))
    assert plan.notes == ("the rule '*embed*' (stay wide) matches nothing in this model",)


def test_without_calibration_names_decide_who_shares_a_scale(tmp_path: Path) -> None:
    quantize_folder(QuantizeConfig(saved(LLAMA, tmp_path / "model"), "nvfp4", batches=[]), tmp_path / "out")
    scales = {
        layer.spec.name: layer.matrices[0].tensor_scale for layer in remembered(load_quantized(tmp_path / "out")[0])
    }
    block = "model.layers.0."
    q, k, v = (scales[f"{block}self_attn.{name}_proj.weight"] for name in "qkv")
    gate, up, down = (scales[f"{block}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    assert q == k == v and gate == up != down


def test_experts_on_disk_and_in_the_model_have_other_names(tmp_path: Path) -> None:
    mixtral = next(a for a in TABLE if a.name == "mixtral")
    folder = saved(mixtral, tmp_path / "model")
    from narrowcast.io.weights import folder_weights

    assert any(".experts.3." in name for name in folder_weights(folder))
    report = quantize_folder(QuantizeConfig(folder, "w4a16-rtn-g32", batches=[]), tmp_path / "out")
    experts = [row for row in report["plan"]["rows"] if row["kind"] == "experts"]
    assert len(experts) == 4 and all(row["became"] == "narrow" for row in experts)
    assert all(len(row["shape"]) == 3 and row["after"] < row["before"] / 6 for row in experts)


def test_silent_channels_are_counted_and_do_no_harm(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    edited(folder, lambda t: t["model.layers.0.input_layernorm.weight"][:7].zero_())
    config = QuantizeConfig(folder, quick("w8a8-int8"), batches=[LLAMA.inputs(0)])
    report = quantize_folder(config, tmp_path / "out")
    assert report["silent"] == {"model.layers.0.self_attn.q_proj.weight": 7}
    loaded, _ = load_quantized(tmp_path / "out")
    assert logits(loaded, LLAMA.inputs(99)).isfinite().all()


def test_the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    folder = saved(LLAMA, tmp_path / "model")
    for out in ("one", "two"):
        config = QuantizeConfig(folder, quick("w8a8-int8"), batches=[LLAMA.inputs(0)])
        quantize_folder(copy.copy(config), tmp_path / out)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
