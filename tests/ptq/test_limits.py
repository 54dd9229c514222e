"""A model that does not fit the memory, and a run that is killed: in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.ptq.architectures import SMALL, TABLE
from tests.ptq.folders import bytes_of, quick, saved

from narrowcast.errors import InputError
from narrowcast.ptq.folder import QuantizeConfig, quantize_folder

LLAMA = TABLE[0]
_WIDTH, _INNER, _BLOCKS, _VOCABULARY = 256, 512, 24, 8000  # embedding and head are three blocks' size each
_HEADROOM = 18 << 20  # bytes that the process may take beyond what its libraries hold

SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
import torch
from tests.ptq.architectures import TABLE
from tests.ptq.folders import quick
from narrowcast.ptq import PtqRecipe, Scheme
from narrowcast.ptq.folder import QuantizeConfig, quantize_folder
from narrowcast.quantize import cast

folder, headroom = Path(sys.argv[1]), int(sys.argv[2])
recipe = PtqRecipe("int8", "", "", Scheme(cast("int8/row/fp32"), cast("int8/tensor/fp32"), static=True))
tokens = torch.randint(1, 60, (2, 16), generator=torch.Generator().manual_seed(0))

def run(name):
    config = QuantizeConfig(folder / name, recipe, batches=[tokens], held=[tokens[:1]])
    return quantize_folder(config, folder / f"{name}-out")

run("warm")  # every library is in memory now
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + headroom, most))
report = run("large")
try:
    torch.empty(report["bytes_before"] // 4)
except RuntimeError:
    print("the whole does not fit", flush=True)
resource.setrlimit(resource.RLIMIT_AS, (most, most))

def kill(done, total, what):
    if what.startswith("outside"):  # both blocks are finished, and nothing of the rest
        os.kill(os.getpid(), signal.SIGKILL)

config = QuantizeConfig(folder / "model", quick("w8a8-int8"), batches=[TABLE[0].inputs(0)])
quantize_folder(config, folder / "killed", on_step=kill)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which one process did all of `SCRIPT`, and what it printed; it ended by SIGKILL."""
    folder = tmp_path_factory.mktemp("limits")
    written(folder / "warm", 2)
    written(folder / "large", _BLOCKS)
    saved(LLAMA, folder / "model")
    quiet = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(_HEADROOM)],
        env={**os.environ, **quiet, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    return folder, done.stdout


def written(folder: Path, blocks: int) -> Path:
    """A Llama of ``blocks`` blocks in float32, its weights random."""
    folder.mkdir()
    config = SMALL | {"hidden_size": _WIDTH, "intermediate_size": _INNER, "num_hidden_layers": blocks}
    config |= {
        "vocab_size": _VOCABULARY,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    draws = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCABULARY, _WIDTH)}
    shapes["lm_head.weight"] = (_VOCABULARY, _WIDTH)
    for i in range(blocks):
        for name in ("q", "k", "v", "o"):
            shapes[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (_WIDTH, _WIDTH)
        for name in ("gate", "up"):
            shapes[f"model.layers.{i}.mlp.{name}_proj.weight"] = (_INNER, _WIDTH)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (_WIDTH, _INNER)
    tensors = {name: 0.05 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(blocks) for n in ("input", "post_attention")]
    tensors |= {name: torch.ones(_WIDTH) for name in [*norms, "model.norm.weight"]}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_model_of_four_times_the_memory_is_quantized(ran: tuple[Path, str]) -> None:
    folder, printed = ran
    assert (folder / "large" / "model.safetensors").stat().st_size > 4 * _HEADROOM
    assert "the whole does not fit" in printed
    report = json.loads((folder / "large-out" / "report.json").read_text())
    table = 4 * _WIDTH * _VOCABULARY  # read as a whole only to be written
    assert report["memory"]["weights_peak"] == table < report["memory"]["model_bytes"] / 9
    assert report["judgement"]["tokens"] == 15
    assert len(report["layers"]) == 7 * _BLOCKS and report["calibration"]["tokens"] == 32


def test_a_killed_run_goes_on_behind_its_last_block_to_the_same_bits(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    config = QuantizeConfig(folder / "model", quick("w8a8-int8"), batches=[LLAMA.inputs(0)])
    quantize_folder(config, folder / "whole")
    out = folder / "killed"
    assert not out.exists()
    with pytest.raises(InputError, match="a run that was not finished is there; go on with"):
        quantize_folder(config, out)
    other = replace(config, recipe=quick("w8a8-fp8"))
    with pytest.raises(InputError, match="settings differ"):
        quantize_folder(other, out, resume=True)
    first = next((folder / ".killed.quantizing").glob("model-00001-*.safetensors"))
    stamp = first.stat().st_mtime_ns
    report = quantize_folder(config, out, resume=True)
    assert report["resumed_after"] == 2
    assert (out / first.name).stat().st_mtime_ns == stamp  # it was not written again
    assert bytes_of(out) == bytes_of(folder / "whole")
    assert len(report["layers"]) == 14 and not (folder / ".killed.quantizing").exists()
