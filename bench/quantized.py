"""README's second example: real models under several post-training recipes, by the command itself, side by side.

    python bench/run.py quantized [--page DIR]       needs NARROWCAST_DATA; writes bench/results/quantized.json
    python bench/run.py quantized --quick            two recipes, a Llama of 40 steps; prints, writes nothing

The models: stories260K, judged on text that it writes itself; and a Llama that ``narrowcast train`` trains here for
4000 steps on the standard library's source, so that it has something to lose. It is calibrated on files that it was
trained on and judged on those that it was not: the validation side of the corpus.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from narrowcast.cli import run
from narrowcast.report.beside import beside, sentence, write_beside
from narrowcast.report.quantize import load_quantized_report
from narrowcast.studies.study import data_folder
from narrowcast.workloads.corpus import SEPARATOR, load_corpus

RESULTS = Path(__file__).parent / "results"
RECIPES = (
    "w8a8-int8", "w8a8-fp8", "w4a16-rtn-g32", "w4a16-awq-g32", "w4a16-gptq-g32", "w4a16-descent-g32", "mxfp4-gptq",
    "nvfp4-gptq",
)  # fmt: skip
ROTATED = ("mxfp4-mr-gptq", "nvfp4-mr-gptq")  # widths of stories260K are no multiples of their rotations
TRAIN = ("train", "--recipe", "fp32", "--steps", "4000", "--checkpoint-every", "4000", "--eval-every", "1000")
QUICK = ("train", "--recipe", "fp32", "--steps", "40", "--checkpoint-every", "40", "--eval-every", "40")
LENGTH, HELD = 64, 512  # tokens of a window, and windows to judge on: 32,256 predicted tokens
UNSEEN = "files of the standard library's source that it was not trained on"
SHOWN = 15  # documents to calibrate on for each that is judged: `load_corpus` holds the last sixteenth of a file back


def command(*arguments: str) -> None:
    """Run the command; leave with its status where it is not 0."""
    status = run(list(arguments))
    if status:
        raise SystemExit(status)


def write_text(path: Path) -> None:
    """Write training documents of the standard library's source, and all its validation documents as the last 1/16."""
    corpus = load_corpus(None)
    shown = corpus.train[: SHOWN * len(corpus.validation)]
    if len(shown) < SHOWN * len(corpus.validation):
        raise SystemExit(f"error: {len(corpus.train)} documents to calibrate on, {len(corpus.validation)} to judge on")
    path.write_text(f"\n{SEPARATOR}\n".join((*shown, *corpus.validation)))
    held = load_corpus(path).validation
    if [text.strip() for text in held] != [text.strip() for text in corpus.validation]:
        raise SystemExit("error: the text does not divide as it should")


def quantized(name: str, model: Path, recipes: tuple[str, ...], out: Path, *options: str) -> dict[str, Any]:
    """Return ``model`` under every recipe, side by side."""
    reports = []
    for recipe in recipes:
        command("quantize", str(model), "--recipe", recipe, "--out", str(out / recipe), *options)
        report = load_quantized_report(out / recipe / "report.json")
        report["model"]["name"], report["command"] = name, f"narrowcast quantize MODEL --recipe {recipe}"
        report["calibration"]["source"] = UNSEEN if options else "text that the model wrote itself"
        reports.append(report)
    return beside(reports)


def main(arguments: list[str]) -> None:
    """Quantize, write the result file, print what to choose between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="folder for a page per model")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    options = parser.parse_args(arguments)
    data = data_folder()
    if data is None:
        raise SystemExit("error: NARROWCAST_DATA names no folder of real data")
    recipes, train = (RECIPES[:2], QUICK) if options.quick else (RECIPES, TRAIN)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_text(here / "text.txt")
        command(*train, "--out", str(here / "llama"))
        judged = ("--data", str(here / "text.txt"), "--length", str(LENGTH), "--held", str(HELD))
        models = [
            quantized("stories260K", data / "lm-stories260K" / "hf", recipes, here / "stories"),
            quantized(f"a Llama trained by narrowcast {' '.join(train[:5])}", here / "llama" / "model",
                      recipes if options.quick else (*recipes, *ROTATED), here / "code", *judged),
        ]  # fmt: skip
    path = RESULTS / "quantized.json"
    if not options.quick:
        path.write_text(json.dumps({"models": models}, indent=1) + "\n")
    for number, found in enumerate(models):
        print(sentence(found))
        if options.page:
            print(write_beside(found, options.page / str(number)))
    print(f"judged on {[found['tokens'] for found in models]} tokens" if options.quick else path)
