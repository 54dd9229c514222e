"""Floor 7: the papers, what each claims, and what was measured here. A new study is one file and one row.

``results/NN.json`` holds the committed result of study NN, with the machine's name and the command that wrote it.
"""

import json
import shutil
import time
from dataclasses import asdict
from importlib import import_module
from importlib.resources import files
from typing import Any

from narrowcast.errors import InputError
from narrowcast.io import versions
from narrowcast.studies.study import VERDICTS, Check, Outcome, Setting, Study, data_folder, verdict

KIND, VERSION = "narrowcast-study", 1
#: number of the sheet -> module of this package
_MODULES: dict[int, str] = {
    1: "smooth_swiglu",
    11: "deepseek_fp8",
    16: "minifloat_ptq",
    17: "unit_variance",
    20: "fp8_int8",
    21: "coat",
    22: "fp8_workflow",
    24: "two_precisions",
    26: "one_flow",
    27: "hifloat8",
    28: "fp8_formats",
    32: "amax_cscale",
    33: "int_versus_fp",
    35: "infir2",
    37: "production_recipes",
    42: "mr_gptq",
    50: "ksort",
    52: "mixed_formats",
    57: "kbit",
    66: "single_double",
    67: "afpq",
    73: "multistage",
    76: "compressed",
    77: "lmul",
    81: "npe",
    84: "truncation",
    91: "scalable",
    93: "every_operation",
}


def numbers() -> list[int]:
    """Return the numbers of all studies, ascending."""
    return sorted(_MODULES)


def study(number: int) -> Study:
    """Return study ``number``; InputError with the known numbers."""
    if number not in _MODULES:
        known = ", ".join(map(str, numbers()))
        raise InputError(f"no study {number}; known: {known}")
    found: Study = import_module(f"narrowcast.studies.{_MODULES[number]}").STUDY
    return found


def committed(number: int) -> dict[str, Any] | None:
    """Return the committed result of study ``number``, or None where there is none yet."""
    path = files("narrowcast.studies") / "results" / f"{number:02d}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def carry_out(chosen: Study, setting: Setting, command: str) -> dict[str, Any]:
    """Run a study and return its result, ready for JSON.

    Raises InputError where it needs a GPU or data that are not here.
    """
    if "cuda" in chosen.needs:
        _require_cuda(chosen.number)
    if "compiler" in chosen.needs and shutil.which("g++") is None:
        raise InputError(f"study {chosen.number} compiles its loops: it needs g++; on Debian: apt-get install g++")
    start = time.perf_counter()
    outcome = chosen.run(setting)
    return {
        "kind": KIND,
        "version": VERSION,
        **chosen.facts(),
        "command": command,
        "verdict": outcome.verdict,
        "checks": [asdict(check) for check in outcome.checks],
        "tables": list(outcome.tables),
        "plots": list(outcome.plots),
        "notes": list(outcome.notes),
        "quick": setting.quick,
        "seed": setting.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
    }


def _require_cuda(number: int) -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"study {number} needs a CUDA device and there is none; see its committed result with --show")


__all__ = [
    "VERDICTS",
    "Check",
    "Outcome",
    "Setting",
    "Study",
    "carry_out",
    "committed",
    "data_folder",
    "numbers",
    "study",
    "verdict",
]
