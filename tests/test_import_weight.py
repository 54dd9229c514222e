"""`import narrowcast` is light: counted in modules, never by a clock."""

import json
import subprocess
import sys

import pytest

BASE = "import torch, numpy, safetensors, safetensors.torch"
HEAVY = {"transformers", "tokenizers", "triton", "plotly", "typer", "rich", "scipy", "ml_dtypes", "torchao"}
#: modules beside narrowcast's own; none when measured, with room for another Python's standard library
OTHERS = 10
OWN = 110  # narrowcast's own; 81 when measured, which take 0.15 s of the 0.3 s that are promised


#: one process imports them in this order; each is judged by what it adds to those before it
STEPS = (
    "import torch, numpy, safetensors, safetensors.torch",
    "import narrowcast",
    "import narrowcast.train, narrowcast.io, narrowcast.models, narrowcast.workloads",
    "from narrowcast.cli import run",
)


@pytest.fixture(scope="module")
def added() -> dict[str, set[str]]:
    """Return the modules that each of `STEPS` adds, measured in a fresh process."""
    lines = ["import json, sys"]
    for step in STEPS:
        lines += [step, "print(json.dumps(sorted(sys.modules)))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    seen = [set(json.loads(line)) for line in done.stdout.splitlines()]
    return {step: now - before for step, before, now in zip(STEPS, [set(), *seen], seen, strict=False)}


def packages(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_import_loads_torch_numpy_and_safetensors_alone(added: dict[str, set[str]]) -> None:
    new = added["import narrowcast"]
    assert "narrowcast" in new
    assert not packages(new) & HEAVY
    others = {name for name in new if name.split(".")[0] != "narrowcast"}
    assert len(others) <= OTHERS, sorted(others)
    assert len(new - others) <= OWN, sorted(new - others)


def test_the_upper_floors_load_model_libraries_only_when_called(added: dict[str, set[str]]) -> None:
    assert not packages(added[STEPS[2]]) & {"transformers", "tokenizers", "plotly", "typer", "scipy"}


def test_the_command_loads_a_verb_only_when_called(added: dict[str, set[str]]) -> None:
    new = added["from narrowcast.cli import run"]
    assert "typer" in new
    assert not packages(new) & {"transformers", "tokenizers", "plotly", "scipy"}
    assert not {f"narrowcast.cli.{verb}" for verb in ("train", "compare", "formats", "recipes")} & new
