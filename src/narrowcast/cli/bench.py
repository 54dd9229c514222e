"""``narrowcast bench``: the benchmarks that lie beside the source."""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import narrowcast
from narrowcast.cli.common import JsonFlag, console
from narrowcast.errors import InputError, nearest

#: name: (module in bench/, result file, what it measures)
BENCHES = {
    "train": ("train_gpu", "train-cuda.json", "a training step beside bf16 and torchao"),
    "attention": ("attention_gpu", "attention-cuda.json", "attention by cuDNN, FlashAttention-2 and -4"),
    "gemm": ("gemm", "gemm-cuda.json", "products on tensor cores beside bf16's"),
    "cast": ("quantize_gpu", "quantize-cuda.json", "quantizing kernels beside a copy"),
    "passes": ("passes_gpu", "passes-cuda.json", "passes over both orientations beside a copy"),
    "optimizer": ("optimizer_gpu", "optimizer-cuda.json", "optimizer steps beside torch's fused AdamW"),
    "pretrain": ("pretrain_gpu", "pretrain-cuda.json", "real training beside bf16: loss and clock"),
    "accumulator": ("accumulator", "accumulator-cuda.json", "how FP8 products are summed"),
}


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHES)}.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Options of the benchmark, after --.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the result file [a temporary one].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure speed on this machine's GPU, beside peers in one run.

    Variants are interleaved and figures are medians; the result file names the machine. Needs a CUDA device and the
    repository, where the benchmarks lie in `bench/`.

    Example: narrowcast bench train --out results -- --recipes fp8-tensorwise --explain
    """
    if name not in BENCHES:
        raise InputError(f"unknown benchmark {name!r}{nearest(name, BENCHES)}")
    module, result, _ = BENCHES[name]
    root = Path(narrowcast.__file__).parents[2]
    if not (root / "bench" / f"{module}.py").is_file():
        raise InputError(f"benchmark {name}: bench/{module}.py is not beside this installation; clone the repository")
    if not torch.cuda.is_available():
        raise InputError(f"benchmark {name} needs a CUDA device: torch finds none here")
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        run: Any = import_module(f"bench.{module}")
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            run.main([*(arguments or []), "--out", str(folder)])
        if as_json:
            print(json.dumps(json.loads((folder / result).read_text()), indent=1))
        elif out is not None:
            console.print(f"written: {folder / result}")
