"""The verb ``quantize``: what it prints and writes, and one clear line for everything that is wrong."""

import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tests.ptq.architectures import SMALL, Architecture, causal, tokens
from tests.ptq.folders import bytes_of, configured, edited, saved

import narrowcast.cli as cli
from narrowcast.io.quantized import LayerSpec
from narrowcast.ptq import staging
from narrowcast.ptq.catalogue import recipes
from narrowcast.report.quantize import remarks

QUICK = ["--samples", "4", "--length", "16", "--held", "2"]
OUT = [*QUICK, "--out", "out"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` (a Llama that knows 300 words, with a tokenizer) and ``text``."""
    from transformers import LlamaConfig

    from narrowcast.workloads import load_corpus, tokenize

    folder = tmp_path_factory.mktemp("made")
    (folder / "text").mkdir()
    for n in range(4):
        (folder / "text" / f"{n}.txt").write_text(f"def function_{n}(x):\n    return x + {n}\n" * 40)
    config = LlamaConfig(**SMALL | {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0})
    saved(Architecture("words", causal(config), tokens), folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found = tokenize(load_corpus(folder / "text"), 300)
    (folder / "model" / "tokenizer.json").write_text(found.tokenizer)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*more: str, recipe: str = "w4a16-rtn-g32") -> list[str]:
    return ["quantize", "model", "--recipe", recipe, *more]


def refused(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2, and not a file more or less than before."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err, err
    assert sorted(Path().rglob("*")) == before


def test_text_in_and_a_folder_with_a_page_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(quantize("--data", "text", *OUT, "--json", recipe="w4a16-gptq-g32")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(Path("out/report.json").read_text())
    assert report["judgement"]["before"] > 0 and len(report["samples"]) > 0
    page = Path("out/report.html").read_text()
    for text in (
        "Where it is lost",
        report["layers"][0]["name"].removeprefix("model.").removesuffix(".weight"),
        "<mark>",
    ):
        assert text in page
    assert "<script src" not in page and "http-equiv" not in page
    assert Path("out/tokenizer.json").read_bytes() == Path("model/tokenizer.json").read_bytes()
    assert cli.run(quantize("--data", "text", *OUT, "--overwrite", recipe="w4a16-gptq-g32")) == 0
    out = capsys.readouterr().out
    page = Path("out/report.html").read_bytes()
    Path("out/report.html").unlink()
    assert cli.run(["report", "out", "--json"]) == 0
    assert Path("out/report.html").read_bytes() == page
    assert "smaller); perplexity" in out and "hurt most:" in out and "it writes:" in out


def test_without_a_text_the_model_writes_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(quantize(*OUT, "--seed", "1", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["calibration"] == {
        "source": "text that the model wrote itself", "tokens": 64, "held_tokens": 32, "seed": 1,
    }  # fmt: skip


@pytest.mark.usefixtures("wide_terminal")
@pytest.mark.parametrize("run", [("--plan",), OUT])
def test_what_loaders_do_otherwise_is_said(here: Path, capsys: pytest.CaptureFixture[str], run: Sequence[str]) -> None:
    apart = ("--layout", "compressed-tensors", "--keep-wide", "*q_proj")
    assert cli.run(quantize(*run, *apart)) == 0
    said = "note: vLLM loads q_proj, k_proj, v_proj as one layer, but those of model.layers.0.self_attn differ"
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("wide_terminal")
def test_a_plan_reads_no_weights_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from narrowcast.io.weights import Stored

    monkeypatch.setattr(Stored, "read", lambda stored: pytest.fail(f"{stored} was read"))
    before = bytes_of(here / "model")
    assert cli.run(quantize("--plan", "--gpu", "h100")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "model.layers.*.mlp.down_proj.weight (x2) 64x128 int4_full/1x32/fp32" in out
    assert "shares with model.layers.*.self_attn.q_proj.weight" in out
    assert "model.layers.*.self_attn (x2)" in out and "q k^T and p v stay in 16 bits" in out
    assert "NVIDIA H100" in out and "decode" in out
    assert bytes_of(here / "model") == before and not Path("out").exists()


@pytest.mark.parametrize("name", recipes())
def test_the_plans_bytes_are_those_that_are_stored(name: str) -> None:
    scheme = recipes()[name].scheme
    for shape in ((64, 172), (40, 128)):
        if scheme.transform is None or shape[1] % scheme.transform.size == 0:
            spec = LayerSpec("w", "", "Linear", shape, 1, shape, False, scheme.weight)
            assert spec.nbytes == scheme.weight.quantize(torch.randn(shape)).nbytes


def spoilt(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], object]:
    return lambda: edited(Path("model"), change)


def foreign(make: Callable[[Path], object]) -> Callable[[], object]:
    def spoil() -> None:
        Path("model/model.safetensors").unlink()
        make(Path("model/model.safetensors"))

    return spoil


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x")


def sharded() -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    Path("model/model.safetensors.index.json").write_text(json.dumps(index))
    os.rename("model/model.safetensors", "model/one.safetensors")


MODELS: dict[str, tuple[Callable[[], object], str]] = {
    "no folder": (lambda: shutil.rmtree("model"), "no such file or folder"),
    "no config": (lambda: Path("model/config.json").unlink(), "has no config.json"),
    "no weights": (lambda: Path("model/model.safetensors").unlink(), "found no weights"),
    "a missing shard": (sharded, "1 of 2 shards missing, first two.safetensors; copy them again"),
    "truncated": (lambda: os.truncate("model/model.safetensors", 9000), "truncated or not safetensors"),
    "truncated in the header": (lambda: os.truncate("model/model.safetensors", 100), "truncated or not safetensors"),
    "a pickle": (foreign(lambda p: p.write_bytes(b"\x80\x04K\x01.")), "a pickle, refused unread"),
    "a zip archive": (foreign(zipped), "a zip archive, as torch.save writes it"),
    "a pickle by its name": (foreign(lambda p: p.with_name("pytorch_model.bin").touch()), "a pickle, which is refused"),
    "NaN": (spoilt(lambda t: t["model.layers.1.mlp.up_proj.weight"][3].fill_(torch.nan)),
            "tensor model.layers.1.mlp.up_proj.weight holds NaN"),
    "a tensor too few": (spoilt(lambda t: t.pop("model.norm.weight")), "lacks model.norm.weight"),
    "a tensor too many": (spoilt(lambda t: t.update(extra=torch.ones(1))), "holds unknown extra"),
    "another shape": (spoilt(lambda t: t.update({"model.norm.weight": torch.ones(5)})), "expected [64]"),
    "settings of no model": (lambda: configured(Path("model"), num_attention_heads=7), "makes no model of model_type"),
    "an input that overflows": (spoilt(lambda t: t["model.layers.1.input_layernorm.weight"].mul_(1e25)),
                                "the input of model.layers.1.self_attn.q_proj.weight reaches"),
    "an architecture that cannot be run": (lambda: configured(Path("model"), model_type="stories"),
                                           "model_type 'stories', unknown to transformers, cannot be run; take a recipe"),
    "no tokenizer": (lambda: Path("model/tokenizer.json").unlink(), "has no tokenizer.json"),
    "quantized already": (lambda: configured(Path("model"), quantization_config={"quant_method": "gptq"}),
                          "is quantized already (quant_method gptq)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = MODELS[case]
    spoil()
    refused(quantize("--data", "text", *OUT, recipe="w4a16-gptq-g32"), message, capsys)


OPTIONS = [
    (["--out", "model"], "holds files that are no quantized model of ours", ["--overwrite"]),
    (["--out", "model"], "exists already; replace it with --overwrite", []),
    (["--out", "text/0.txt"], "is a file", []),
    (["--out", "text/0.txt/new"], "0.txt is a file, expected a folder", []),
    (["--out", "new"], "exclude each other", ["--overwrite", "--resume"]),
    ([], "--out is missing", []),
    (["--out", "new"], "--samples: expected at least 1, found 0", ["--samples", "0"]),
    (["--out", "new"], "matches no module", ["--keep-wide", "*nothing"]),
    (["--out", "new"], "unknown GPU 'h1000'; nearest: h100", ["--gpu", "h1000"]),
    (["--out", "new"], "--device tpu: no such kind", ["--device", "tpu"]),
    (["--out", "new"], "unknown layout 'gguf'", ["--layout", "gguf"]),
    (["--out", "new"], "no such file or folder", ["--data", "nowhere"]),
    (["--out", "new"], "none of 1 files is readable UTF-8 text; first empty: empty", ["--data", "empty"]),
    (["--out", "new"], "the folder is empty", ["--data", "hollow"]),
    (["--out", "new"], "no window of two tokens or more", ["--data", "word"]),
]


@pytest.mark.parametrize(("out", "message", "more"), OPTIONS, ids=[row[1][:30] for row in OPTIONS])
def test_options_that_cannot_be_used(
    out: list[str], message: str, more: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").touch()
    Path("hollow").mkdir()
    Path("word").write_text("<|endoftext|>")
    refused(quantize(*out, *more, recipe="w4a16-gptq-g32"), message, capsys)


RECIPES = [
    ("w4a16-gpt-g32", "unknown post-training recipe 'w4a16-gpt-g32'; nearest: w4a16-gptq-g32"),
    ("int4/1x48/fp32", "model.layers.0.self_attn.q_proj.weight of shape (64, 64): tile 1x48 does not divide"),
    ("float32/row/fp32", "100 % of the bytes meant to shrink would not, first model.layers.0"),
    ("int4/1x32/fp33", "malformed cast"),
]


@pytest.mark.parametrize(("recipe", "message"), RECIPES)
@pytest.mark.parametrize("more", [["--plan"], ["--data", "text", *OUT]], ids=["plan", "run"])
def test_recipes_that_do_not_fit_are_found_by_the_plan(
    recipe: str, message: str, more: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(quantize(*more, recipe=recipe), message, capsys)


def test_a_full_disk_keeps_what_is_finished(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second block is written, no file may grow beyond 10 kB."""
    write = staging._write

    def cramped(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if "-00002-" in path.name else limits[1], limits[1]))
        try:
            return write(path, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    run = quantize("--data", "text", *OUT)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_write", cramped)
        assert cli.run(run) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "File too large" in err and "go on with --resume" in err
    assert not Path("out").exists() and not list(Path().rglob("*.part"))
    assert cli.run([*run, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_after"] == 1
    assert cli.run([*quantize("--data", "text", *QUICK, "--out", "again")]) == 0
    assert bytes_of(Path("out")) == bytes_of(Path("again"))


def test_a_disk_that_is_too_small_is_found_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 1000))
    refused(quantize("--data", "text", *OUT), "1.00 kB are free, the result takes", capsys)


def test_predictions_that_are_not_finite_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(Path("model"), lambda t: t["model.norm.weight"].fill_(3e38))
    assert cli.run(quantize("--data", "text", *OUT)) == 1
    assert "the predictions of the original model are not finite" in capsys.readouterr().err
    assert not Path("out").exists() and not Path(".out.quantizing").exists()


def test_a_damaged_report_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(Path("model"))
    for text, message in (("{", "not a report"), ("{}", "no report of this version"),
                          ('{"kind": "narrowcast-quantize", "version": 1}', "damaged (KeyError")):  # fmt: skip
        Path("model/report.json").write_text(text)
        refused(["report", "model"], message, capsys)


def test_what_happened_to_the_cholesky_factor_is_in_the_report(here: Path) -> None:
    from dataclasses import replace

    from narrowcast.ptq import Solver, recipe
    from narrowcast.ptq.folder import QuantizeConfig, quantize_folder

    chosen = replace(recipe("w4a16-gptq-g32"), solver=Solver(damping=0.0), search=recipe("w4a16-rtn").search)
    batches = [torch.arange(1, 7)[None]]  # six rows, of which no matrix of 64 columns is determined
    report = quantize_folder(QuantizeConfig(here / "model", chosen, batches=batches), here / "out")
    notes = {note for row in report["layers"] for note in row["notes"]}
    assert notes and all("needed damping" in note or "rounded to nearest" in note for note in notes)
    said = " ".join(remarks(report))
    assert "of 14 matrices: H " in said and "met fewer calibration rows than they have columns" in said


@pytest.mark.usefixtures("wide_terminal")
def test_silent_channels_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(Path("model"), lambda t: t["model.layers.1.input_layernorm.weight"][:7].zero_())
    assert cli.run(quantize("--data", "text", *OUT, recipe="w4a16-gptq-g32")) == 0
    said = "note: input channels that were zero on all calibration rows, harmless here: 7 in 1 layers, first layers.1"
    assert said in " ".join(capsys.readouterr().out.split())
