"""Whether a training run killed on the GPU goes on to the same numbers, under FP8 recipes with all that they remember.

    python bench/run.py resume_gpu [--recipes ...] [--device cuda] [--quick] [--eager] [--work DIR] [--out DIR]

For each recipe `narrowcast train` trains a small Llama, compiled, once unbroken, and once killed by SIGKILL in
mid-course and resumed from its last checkpoint, each in a process of its own. Compared bit for bit: the losses of all
updates and validations, the written model, and every tensor of the last checkpoint (weights, moments, masters,
histories of maxima, counters of random bits). Where they differ a second unbroken run says whether training repeats
itself at all. Writes
bench/results/resume-DEVICE.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench.pretrain_gpu import gather

from narrowcast.errors import CheckFailed
from narrowcast.io import load_checkpoint, versions, write_atomic
from narrowcast.workloads import load_corpus, tokenize

RESULTS = Path(__file__).parent / "results"
RECIPES = "fp8-tensorwise,fp8-delayed,fp8-coat+fp8-adam-expanded,fp8-smooth-swiglu+fp8-adam-blocks"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 512,
    "intermediate_size": 1536, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.02, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip
VOCAB, EVERY = 512, 8  # updates between checkpoints: the kill falls between two
LIMIT = 400.0  # seconds of one process


def command(options: argparse.Namespace, recipe: str, out: Path, *more: str) -> list[str]:
    """Return the training run."""
    quick = options.quick
    return [
        sys.executable, "-m", "narrowcast", "train", "--recipe", recipe, "--device", options.device, "--wide",
        "bfloat16",
        "--model", str(options.work / "config.json"), "--data", str(options.work / "corpus"), "--vocab", str(VOCAB),
        "--steps", str(options.steps), "--batch", "2" if quick else "16", "--context", "32" if quick else "256",
        "--lr", "1e-3", "--eval-every", "20", "--checkpoint-every", str(EVERY), "--threads", "1", "--seed", "1",
        "--backend", "native" if options.device == "cuda" else "auto", "--out", str(out),
        *([] if options.eager else ["--compile"]), *more,
    ]  # fmt: skip


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run; what it says goes to ``log``."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def finished(command: list[str], log: Path) -> None:
    """Run to the end."""
    process = started(command, log)
    try:
        code = process.wait(LIMIT)
    finally:
        process.kill()
    if code:
        raise CheckFailed(f"{' '.join(command[2:6])} ended with status {code}: {log.read_text()[-1500:]}")


def updates(out: Path) -> list[tuple[int, str, float]]:
    """Return (step, kind, loss) of all that a run has logged."""
    file = out / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(r["step"], key, r[key]) for r in lines for key in ("loss", "val_loss") if key in r]


def killed(command: list[str], log: Path, out: Path, after: int) -> int:
    """Start a run, kill it by SIGKILL once it has made ``after`` updates, and return how many it had made."""
    process, file, begin = started(command, log), out / "metrics.jsonl", time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - begin < LIMIT:
            if file.exists() and file.read_text().count('"loss"') >= after:
                break
            time.sleep(0.002)
        if process.poll() is not None:
            raise CheckFailed(f"{' '.join(command[2:6])} ended before it could be killed: {log.read_text()[-1500:]}")
    finally:
        process.kill()  # SIGKILL: it has no chance to tidy up
        process.wait()
    return file.read_text().count('"loss"')


def checkpoint(out: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the step and the tensors of the newest checkpoint."""
    found = load_checkpoint(out / "checkpoints")
    if found is None:
        raise CheckFailed(f"{out}: no checkpoint")
    return found[0], found[1]


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Iterator[str]:
    """Yield the names of tensors that are not the same bytes."""
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        alike = x is not None and y is not None and (x.dtype, x.shape) == (y.dtype, y.shape)
        if not alike or not torch.equal(*(t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))):
            yield name


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Return what two runs have in common bit for bit."""
    losses = [updates(out) for out in (one, other)]
    pairs = list(zip(*losses, strict=False))
    first = next((list(a[:2]) for a, b in pairs if a != b), None)
    tensors = [checkpoint(out)[1] for out in (one, other)]
    model = [(out / "model" / "model.safetensors").read_bytes() for out in (one, other)]
    wrong = list(different(*tensors))
    return {
        "losses": len(losses[0]),
        "losses_equal": losses[0] == losses[1],
        "first_other_loss": first,
        "model_equal": model[0] == model[1],
        "tensors": len(tensors[0]),
        "of_optimizer": sum(name.startswith("optimizer.") for name in tensors[0]),
        "histories": sum(name.endswith("history") for name in tensors[0]),
        "tensors_differing": wrong[:8] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else []),
    }


def tried(options: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Train unbroken, and beside it killed and resumed; return what is the same."""
    folder = options.work / recipe
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole, broken = folder / "whole", folder / "killed"
    begin = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        unbroken = pool.submit(finished, command(options, recipe, whole), folder / "whole.log")
        made = killed(command(options, recipe, broken), folder / "killed.log", broken, options.kill)
        step = checkpoint(broken)[0]
        finished(command(options, recipe, broken, "--resume"), folder / "killed.log")
        unbroken.result()
    found = {"killed_after": made, "resumed_from": step, **compared(whole, broken)}
    found["same"] = found["losses_equal"] and found["model_equal"] and not found["tensors_differing"]
    if not found["same"]:
        finished(command(options, recipe, folder / "again"), folder / "again.log")
        found["unbroken_runs"] = compared(whole, folder / "again")
    ends = updates(whole)
    found |= {"first_loss": ends[0][2], "last_loss": ends[-1][2], "seconds": round(time.perf_counter() - begin, 1)}
    return found


def main(arguments: list[str]) -> None:
    """Try all recipes side by side, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kill", type=int, default=35, help="updates before the kill")
    parser.add_argument("--together", type=int, default=4, help="recipes at a time")
    parser.add_argument("--data", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--quick", action="store_true", help="a toy, to see that it runs")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--work", type=Path, default=Path("runs/resume"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "config.json").write_text(json.dumps(LLAMA | (SMALL if options.quick else {})))
    gather(options.data, options.work / "corpus", 300_000 if options.quick else 2_000_000)
    tokenize(load_corpus(options.work / "corpus"), VOCAB)  # into the cache, once
    names = options.recipes.split(",")

    def attempt(name: str) -> dict[str, Any]:
        try:
            return tried(options, name)
        except (CheckFailed, subprocess.TimeoutExpired) as error:
            return {"same": False, "failed": str(error)}

    with ThreadPoolExecutor(options.together) as pool:
        rows = dict(zip(names, pool.map(attempt, names), strict=True))
    model = json.loads((options.work / "config.json").read_text())
    payload = {
        "versions": versions(), "device": options.device, "compiled": not options.eager, "steps": options.steps,
        "checkpoint_every": EVERY, "model": model, "recipes": rows,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / f"resume-{options.device}.json", (json.dumps(payload, indent=1) + "\n").encode())
    for name, row in rows.items():
        if "failed" in row:
            print(f"{name}: FAILED: {row['failed']}")
            continue
        print(
            f"{name:40s} killed after {row['killed_after']}, resumed from {row['resumed_from']}: "
            f"{'the same bits' if row['same'] else 'DIFFERENT'}; {row['losses']} losses, {row['tensors']} tensors "
            f"({row['of_optimizer']} of the optimizer, {row['histories']} histories), {row['first_loss']:.4f} to "
            f"{row['last_loss']:.4f}, {row['seconds']} s"
        )
        if not row["same"]:
            print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
