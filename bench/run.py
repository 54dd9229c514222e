"""One door for the benchmarks: ``python bench/run.py NAME [options]``; casts without an argument."""

import sys
from importlib import import_module
from pathlib import Path

NAMES = (
    "casts", "train", "codes", "conformance", "quantize_gpu", "gptq_gpu", "optimizer_gpu", "passes_gpu", "ptq",
    "quantized", "train_gpu", "attention_gpu", "gemm", "accumulator", "pretrain_gpu", "resume_gpu", "ptq_gpu",
)  # fmt: skip

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    name, arguments = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("casts", [])
    if name not in NAMES:
        sys.exit(f"error: unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    import_module(f"bench.{name}").main(arguments)
