"""Real training on a GPU: one Llama on real source text under bf16 and FP8 recipes, same weights, same batches.

    python bench/run.py pretrain_gpu [--steps N] [--recipes ...] [--data FOLDER] [--out DIR] [--work DIR] [--resume]

A Llama 3072 wide of 3 layers (343 million parameters) reads the Python files of the installed packages (the first 125
MB in the order of a hash, no text twice) in updates of 32 x 1024 tokens, compiled. It is `narrowcast compare`; the
baseline is plain PyTorch under bfloat16 autocast, compiled, under three seeds: the recipe bf16 casts in
passes of its own. The clock counts updates at their median time: compiling and validating are left out. Writes the page
and one file a run to the work folder (a comparison that was killed goes on with --resume), and to
bench/results/pretrain-cuda.json the report and, for each recipe, the time to a loss that all of them reach.
"""

import argparse
import hashlib
import json
import sys
import sysconfig
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from narrowcast.compare import CompareConfig, compare
from narrowcast.place import Place
from narrowcast.report import write
from narrowcast.train import StepInfo, TrainConfig

RESULTS = Path(__file__).parent / "results"
BYTES = 125_000_000
LARGEST = 1_000_000  # bytes of one file: beyond are tables and generated code
AUTOCAST = "bf16 autocast"  # what the recipe fp32 is called here: it leaves everything to torch, and torch to autocast
RECIPES = "fp8-tensorwise,fp8-static,fp8-smooth-swiglu+fp8-adam-blocks,fp8-coat,fp8-block"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8192, "hidden_size": 3072,
    "intermediate_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 24, "num_key_value_heads": 4,
    "max_position_embeddings": 1024, "initializer_range": 0.02, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


def gather(source: Path, target: Path, limit: int) -> None:
    """Copy the Python files below ``source`` to ``target`` in the order of a hash of their path, no text twice."""
    if target.is_dir():
        return
    found = (p for p in source.rglob("*.py") if p.is_file() and 0 < p.stat().st_size <= LARGEST)
    order = sorted(found, key=lambda p: hashlib.sha256(p.relative_to(source).as_posix().encode()).digest())
    seen: set[bytes] = set()
    total = 0
    for path in order:
        text = path.read_bytes()
        digest = hashlib.sha256(text).digest()
        if digest in seen:
            continue
        if total + len(text) > limit:
            break
        seen.add(digest)
        total += len(text)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(text)
    print(f"{len(seen)} files, {total / 1e6:.1f} MB of Python from {len(order)} files", flush=True)


def settings(options: argparse.Namespace) -> TrainConfig:
    """Return what all runs share, the corpus and the model written to the work folder."""
    quick = options.quick
    corpus, model = options.work / "corpus", options.work / "config.json"
    options.work.mkdir(parents=True, exist_ok=True)
    gather(options.data, corpus, 2_000_000 if quick else BYTES)
    model.write_text(json.dumps(LLAMA | (SMALL if quick else {})))
    return TrainConfig(
        data=corpus, model=model, vocab=512 if quick else 8192, batch=2 if quick else 32, context=64 if quick else 1024,
        steps=options.steps, warmup=max(1, options.steps // 8), lr=4e-4, eval_every=max(1, options.steps // 16),
        eval_batches=8, device=options.device, wide="bfloat16", compile=not options.eager,
        backend="native" if options.device == "cuda" else "auto",
    )  # fmt: skip


def reached(curve: list[list[float]], loss: float) -> float:
    """Return the step at which a validation curve first reaches ``loss``, on straight lines between its points."""
    for (a, high), (b, low) in pairwise(curve):
        if low <= loss:
            return a + (b - a) * (high - loss) / (high - low)
    return curve[-1][0]


def clocked(report: dict[str, Any]) -> dict[str, Any]:
    """Return the loss that every finished run reaches, and the seconds of updates that each takes to it."""
    rows = [row for row in report["rows"] if not row["diverged"]]
    target = max(row["val_loss"] for row in rows)
    times = {row["recipe"]: reached(row["val"], target) * row["step_seconds"] for row in rows}
    base = times[report["baseline"]]
    return {"loss": target, "seconds": times, "times_sooner": {name: base / t for name, t in times.items()}}


def renamed(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with its baseline called what it is, without names of this machine."""
    base = next(row for row in report["rows"] if row["verdict"] == "baseline")
    said = {
        "recipe": AUTOCAST, "summary": "plain PyTorch: torch.autocast in bfloat16, float32 weights", "paper": "PyTorch",
    }  # fmt: skip
    rows = [row | said if row is base else row for row in report["rows"]]
    for row in rows:
        row["paired_gap"] = None if row["diverged"] else row["val_loss"] - base["val_loss"]
    names = {"corpus": "Python files of the installed packages", "model": "a Llama"}
    parts = {part: report[part] | {"name": name} for part, name in names.items()}
    training = report["training"] | {"data": None, "model": None}
    return {**report, **parts, "training": training, "baseline": AUTOCAST, "rows": rows}


def main(arguments: list[str]) -> None:
    """Train, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--steps", type=int, default=340)
    parser.add_argument("--data", type=Path, default=Path(sysconfig.get_paths()["purelib"]))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a toy, to see that it runs")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    Place.of(options.device, "bfloat16")  # refuses a device that is not there before anything is copied
    begin = time.perf_counter()
    config = CompareConfig(settings(options), tuple(options.recipes.split(",")), "fp32", seeds=2)

    def on_step(number: int, runs: int, name: str, info: StepInfo) -> None:
        if info.step <= 3 or info.step % 50 == 0 or info.step == info.steps:
            print(
                f"{time.perf_counter() - begin:6.1f} s  {name}  step {info.step}  loss {info.loss:.4f}  "
                f"{1e3 * info.seconds:.1f} ms  {info.tokens_per_second:,.0f} tokens/s", flush=True,
            )  # fmt: skip
        if info.step == info.steps and torch.cuda.is_available():
            print(f"          peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
            torch.cuda.reset_peak_memory_stats()

    command = f"./dev bench pretrain_gpu --steps {options.steps} --recipes {options.recipes}"
    run = options.work / "run"
    report = compare(config, run, command=command, resume=options.resume, overwrite=not options.resume, on_step=on_step)
    report = renamed(json.loads(json.dumps(report)))
    write(report, run)
    report["clock"] = clocked(report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"pretrain-{options.device}.json").write_text(json.dumps(report) + "\n")
    show(report)
    print(f"{time.perf_counter() - begin:.0f} s in all", flush=True)


def show(report: dict[str, Any]) -> None:
    """Print one line a recipe."""
    corpus, clock = report["corpus"], report["clock"]
    print(
        f"{report['model']['parameters']:,} parameters; {corpus['bytes'] / 1e6:.1f} MB, {corpus['train_tokens']:,} "
        f"training tokens, BPE of {report['model']['vocab']} from the first {corpus['bpe_bytes'] / 1e6:.1f} MB; noise "
        f"{report['noise']['losses']} +- {report['noise']['half_width']:.4f}; time to loss {clock['loss']:.4f}"
    )
    for row in report["rows"]:
        name = row["recipe"]
        if row["diverged"]:
            print(f"{name}: {row['diverged']}")
            continue
        print(
            f"{name:36s} {row['val_loss']:.4f} {row['gap']:+.4f} {row['verdict']:20s} "
            f"{1e3 * row['step_seconds']:.1f} ms {clock['seconds'][name]:.1f} s  {clock['times_sooner'][name]:.3f}x"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
