"""What post-training quantization loses on real models: the figures of the README and of the claims made about it.

    python bench/run.py ptq [--quick] [--parts language,vision,sentences]
                                             needs NARROWCAST_DATA; writes bench/results/ptq.json

Language model: stories260K, judged on 80 stories with a paired interval, calibrated on 64 texts that the model wrote
itself, five draws of them. Beside ours, llm-compressor's GPTQ core in the same pipeline, where it is there
(`bench/peers.py`). Vision: the public ResNet20 on 500 exact CIFAR-10 test images, calibrated on 256 training images.
Sentences: all-MiniLM-L6-v2 (`bench/ptq_sentences.py`). Parts that are left out stay as the result file has them.
"""

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench.peers import PeerSolver, llmcompressor_gptq, version
from bench.ptq_sentences import sentences

from narrowcast.evaluate import in_bfloat16, language_findings
from narrowcast.evaluate.classifier import compare_classifiers
from narrowcast.io import versions
from narrowcast.metrics import bootstrap, mean_of
from narrowcast.ptq import AbsMax, LeastError, LeastOutputError, Solver
from narrowcast.ptq.bias import correct_biases
from narrowcast.ptq.catalogue import recipe
from narrowcast.ptq.recipe import Awq, PtqRecipe, Scheme, Smooth
from narrowcast.quantize import cast
from narrowcast.studies.quantized_language import Judge, closed, judge
from narrowcast.studies.study import Setting, data_folder
from narrowcast.studies.vision import quantized, resnet20, runs

RESULTS = Path(__file__).parent / "results"
_PLAIN, _AWQ = "W4 g32, rounded to nearest", "W4 g32, AWQ"
_GPTQ, _DESCENT = "W4 g32, GPTQ", "W4 g32, GPTQ, two passes of descent"
_ZERO_POINTS = "W4 g32 with zero points"
_ZERO = f"{_ZERO_POINTS}, rounded to nearest"
_PEER = "W4 g32, llm-compressor's GPTQ core"
_EIGHT, _FINER = "W8A8 FP8, per channel and token", "W8A8 E3M4, per channel and token"
_E4M3, _E3M4 = cast("e4m3fn/row/fp32"), cast("e3m4fn/row/fp32")


def eight_bits() -> dict[str, PtqRecipe]:
    """Return W8A8, either side of it alone, and what is done about its loss."""
    fp8 = recipe("w8a8-fp8")
    return {
        _EIGHT: fp8,
        "FP8, the weights alone": replace(fp8, scheme=Scheme(_E4M3)),
        "FP8, the inputs alone": replace(fp8, scheme=Scheme(cast("float32"), _E4M3)),
        "W8A8 FP8, SmoothQuant": replace(fp8, balance=Smooth()),
        "W8A8 FP8, searched scales": replace(fp8, search=LeastError(2.0, 40, 0.5)),
        "W8A8 FP8, GPTQ, two passes of descent": replace(fp8, solver=Solver(refine=2)),
        "W8A8 FP8, down_proj wide": replace(fp8, keep_wide=(*fp8.keep_wide, "*down_proj")),
        "W8A8 FP8, weights E3M4": replace(fp8, scheme=Scheme(_E3M4, _E4M3)),
        _FINER: replace(fp8, scheme=Scheme(_E3M4, _E3M4)),
        "W8A8 INT8, SmoothQuant and GPTQ": recipe("w8a8-int8"),
    }


def four_bits() -> dict[str, PtqRecipe]:
    """Return W4 in groups of 32: rounded, by GPTQ, by AWQ and its parts, and without the code -8."""
    gptq, awq = recipe("w4a16-gptq-g32"), recipe("w4a16-awq-g32")
    clip, seven = Awq(steps=1, duo=False), Scheme(cast("int4/1x32+pad/fp32"))  # one exponent, 0: no factors
    found = {
        _PLAIN: recipe("w4a16-rtn-g32"),
        _GPTQ: gptq,
        _DESCENT: replace(gptq, solver=Solver(refine=2)),
        _AWQ: awq,
        "W4 g32, AWQ, each group clipped alone": replace(awq, search=LeastOutputError()),
        "W4 g32, AWQ, each group clipped alone, no duo scaling": replace(
            awq, search=LeastOutputError(), balance=Awq(duo=False)
        ),
        "W4 g32, AWQ's factors alone": replace(awq, search=AbsMax()),
        "W4 g32, clipping beside the row's other groups alone": replace(awq, balance=clip),
        "W4 g32, clipping each group alone": replace(awq, search=LeastOutputError(), balance=clip),
        "W4 g32, AWQ, then GPTQ and descent": replace(awq, solver=Solver(refine=2)),
        _ZERO: recipe("w4a16-zero-rtn-g32"),
        f"{_ZERO_POINTS}, GPTQ": recipe("w4a16-zero-gptq-g32"),
        f"{_ZERO_POINTS}, AWQ": recipe("w4a16-zero-awq-g32"),
        "W4 g32 without the code -8, GPTQ": replace(gptq, scheme=seven),
        "W4 g32 without the code -8, AWQ": replace(awq, scheme=seven),
        "W4 g32 without the code -8, AWQ, each group clipped alone": replace(
            awq, scheme=seven, search=LeastOutputError()
        ),
    }
    if llmcompressor_gptq() is not None:
        found[_PEER] = replace(gptq, solver=PeerSolver())
    return found


def parts_of_eight(j: Judge) -> dict[str, float]:
    """Return the KL divergence, nats per token, of W8A8 FP8 in one kind of layer, or one block, alone."""
    fp8, found = recipe("w8a8-fp8"), {}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    blocks = [f"layers.{i}." for i in range(j.model.config.num_hidden_layers)]  # type: ignore[union-attr]
    for family, pattern in ((kinds, "*{}"), (blocks, "*{}*")):
        for one in family:
            wide = tuple(pattern.format(other) for other in family if other != one)
            found[one.strip(".")] = _divergence(j, replace(fp8, keep_wide=(*fp8.keep_wide, *wide)))
    return found


def _divergence(j: Judge, chosen: PtqRecipe) -> float:
    predicted = j.predict(j.quantized(chosen))
    assert predicted.divergence is not None
    return float(predicted.divergence.sum() / predicted.tokens.sum())


def language(setting: Setting) -> dict[str, Any]:
    """Return figures by recipe."""
    j = judge(setting)
    draws = [
        j.own_text(4 if setting.quick else 64, seed, 16 if setting.quick else 128)
        for seed in range(1 if setting.quick else 5)
    ]
    rounded = j.predict(in_bfloat16(j.model))
    found_by: dict[str, Any] = {}
    for name, chosen in (eight_bits() | four_bits()).items():
        start = time.perf_counter()
        figures = []
        for calibration in draws if chosen.needs_calibration else draws[:1]:
            predicted = j.predict(j.quantized(chosen, calibration if chosen.needs_calibration else []))
            figures.append(predicted.perplexity)
            if len(figures) == 1:
                found = [one.to_json() for one in language_findings(j.wide, predicted, rounded)]
        found_by[name] = {
            "recipe": chosen.name, "perplexity": statistics.fmean(figures), "by_calibration": figures,
            "seconds": (time.perf_counter() - start) / len(figures), "findings": found,
        }  # fmt: skip
        print(f"{name:54} {found_by[name]['perplexity']:.4f}  {found[0]['verdict']}", flush=True)
    plain = found_by[_PLAIN]["perplexity"]
    for name, row in found_by.items():
        if name.startswith("W4"):
            row["gap_closed"] = closed(plain, row["perplexity"], j.wide.perplexity)
        if name.startswith(_ZERO_POINTS):
            row["own_gap_closed"] = closed(found_by[_ZERO]["perplexity"], row["perplexity"], j.wide.perplexity)
    return {
        "model": "stories260K", "perplexity": j.wide.perplexity, "spread": _spread(j), "recipes": found_by,
        "fp8_parts": parts_of_eight(j),
    }  # fmt: skip


def _spread(j: Judge) -> list[float]:
    """Return the 95 % interval of the wide model's own perplexity: what other stories would have given."""
    loss = mean_of(j.wide.losses, j.wide.tokens)
    own = bootstrap(lambda w: loss(w).exp(), len(j.wide.losses))
    return [own.low, own.high]


def vision(setting: Setting) -> dict[str, Any]:
    """Return accuracies of ResNet20 by recipe; every layer is quantized, the first and the last too."""
    model, calibration, test = resnet20(setting)
    eight, searched = cast("int8/tensor/fp32"), LeastError(2.0, 40)
    four = Scheme(cast("int4/row/fp32"), eight, static=True)
    tried: dict[str, tuple[PtqRecipe, bool]] = {
        "W8A8 INT8": (PtqRecipe("", "", "", Scheme(cast("int8/row/fp32"), eight, static=True), keep_wide=()), False),
        "W8A8 E4M3": (replace(recipe("w8a8-e4m3-static"), keep_wide=()), False),
        "W4A8, rounded to nearest": (PtqRecipe("", "", "", four, keep_wide=()), False),
        "W4A8, searched scales, bias correction": (PtqRecipe("", "", "", four, search=searched, keep_wide=()), True),
        "W4A8, searched scales, GPTQ": (PtqRecipe("", "", "", four, searched, solver=Solver(), keep_wide=()), False),
    }
    rows = {}
    for name, (chosen, corrected) in tried.items():
        changed = quantized(model, chosen, calibration)
        if corrected:
            original = {n: p.detach() for n, p in copy.deepcopy(model).named_parameters()}
            correct_biases(changed, original, runs(changed, calibration), chosen.keep_wide)
        found = compare_classifiers(model, changed, test.batches(250))
        rows[name] = [one.to_json() for one in found.findings]
        print(f"{name:54} {rows[name][0]['b']:.2f} %", flush=True)
    wide = next(iter(rows.values()))[0]["a"]
    return {"model": "ResNet20", "images": len(test), "accuracy": wide, "recipes": rows}


def claims(text: dict[str, Any], pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was to be reached, and whether it was."""

    def claim(name: str, found: float, holds: bool) -> dict[str, Any]:
        return {"claim": name, "found": found, "holds": holds}

    eight, finer = (text["recipes"][name]["findings"][0] for name in (_EIGHT, _FINER))
    shares = {name: row["gap_closed"] for name, row in text["recipes"].items() if "gap_closed" in row}
    descent, awq, plain, peer = shares[_DESCENT], shares[_AWQ], shares[_GPTQ], shares.get(_PEER)
    lost = {name: pictures["accuracy"] - row[0]["b"] for name, row in pictures["recipes"].items()}
    four = min(v for name, v in lost.items() if name.startswith("W4A8"))
    inside = text["spread"][0] <= eight["b"] <= text["spread"][1]
    return [
        claim("W8A8 FP8: perplexity within the paired noise", eight["change"], eight["verdict"] != "worse"),
        claim("W8A8 E3M4: perplexity within the paired noise", finer["change"], finer["verdict"] != "worse"),
        claim("W8A8 FP8: perplexity within what other stories would give the wide model", eight["b"], inside),
        claim("W4 g32: share of the gap that GPTQ closes, at least half", plain, plain >= 0.5),
        claim("W4 g32: the same with two passes of descent", descent, descent >= 0.5),
        claim("W4 g32: share of the gap that AWQ closes, at least half", awq, awq >= 0.5),
        *(
            [claim("W4 g32: share that descent closes beyond llm-compressor's GPTQ", descent - peer, descent >= peer)]
            if peer is not None
            else []
        ),
        claim("ResNet20 W8A8 INT8: points lost, at most 0.2", lost["W8A8 INT8"], lost["W8A8 INT8"] <= 0.2 + 1e-9),
        claim("ResNet20 W4A8, best: points lost, at most 1.0", four, four <= 1.0 + 1e-9),
    ]


def main(arguments: list[str]) -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only show that it runs; writes nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", default="language,vision,sentences")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    setting, path = Setting(quick=options.quick, data=data_folder()), RESULTS / "ptq.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    for part in options.parts.split(","):
        found = {"language": language, "vision": vision, "sentences": sentences}[part](setting)
        if found is not None:
            result[part] = found | {"versions": versions() | {"peer": version()}, "date": date.today().isoformat()}
    result["claims"] = claims(result["language"], result["vision"])
    for row in result["claims"]:
        print(f"{'holds' if row['holds'] else 'DOES NOT HOLD':14} {row['claim']}: {row['found']:.4f}")
    if options.quick:
        return
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
