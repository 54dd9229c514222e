"""`import narrowcast` is light: counted in modules, never by a clock."""

import json
import subprocess
import sys

import pytest

BASE = "import torch, numpy, safetensors, safetensors.torch"
HEAVY = {"transformers", "tokenizers", "triton", "plotly", "typer", "rich", "scipy", "ml_dtypes", "torchao"}
#: modules beside narrowcast's own; none when measured, with room for another Python's standard library
OTHERS = 10
OWN = 60  # narrowcast's own; 26 when measured


def modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def base() -> set[str]:
    return modules_after(BASE)


def added(statement: str, base: set[str]) -> set[str]:
    return modules_after(f"{BASE}\n{statement}") - base


def test_import_loads_torch_numpy_and_safetensors_alone(base: set[str]) -> None:
    new = added("import narrowcast", base)
    assert "narrowcast" in new
    assert not {name.split(".")[0] for name in new} & HEAVY
    others = {name for name in new if name.split(".")[0] != "narrowcast"}
    assert len(others) <= OTHERS, sorted(others)
    assert len(new - others) <= OWN, sorted(new - others)


@pytest.mark.parametrize("module", ["narrowcast.train", "narrowcast.io", "narrowcast.models", "narrowcast.workloads"])
def test_the_upper_floors_load_model_libraries_only_when_called(module: str, base: set[str]) -> None:
    new = {name.split(".")[0] for name in added(f"import {module}", base)}
    assert not new & {"transformers", "tokenizers", "plotly", "typer", "scipy"}


def test_the_command_loads_a_verb_only_when_called(base: set[str]) -> None:
    new = added("from narrowcast.cli import run", base)
    assert not {name.split(".")[0] for name in new} & {"transformers", "tokenizers", "plotly", "scipy"}
    assert not {f"narrowcast.cli.{verb}" for verb in ("train", "compare", "formats", "recipes")} & new
