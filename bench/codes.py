"""Digest every code that narrowcast writes, so that two machines or two torch versions can be compared bit for bit.

    python bench/run.py codes [--device cuda]     writes bench/results/codes-<device>.json

Inputs are made from Philox bits and bit patterns, never by a library's random generator, so that they are the same
everywhere. `tests/test_digests.py` recomputes the digests and compares them with the committed ones.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path

import torch

import narrowcast as nc
from narrowcast.formats import Integer

RESULTS = Path(__file__).parent / "results"
INTEGERS = ("int2", "int4", "int8", "int16", "int8_full", "uint4", "uint8", "q1.6")  # the others differ in width alone
CASTS = (
    *nc.PRESETS,
    "e4m3fn/tensor/fp32",
    "e5m2/row/fp32",
    "e4m3fn/1x128/fp32",
    "int8/32x32/fp32",
    "int4/1x16/fp32",
    "e2m1fn/1x32/e8m0-ceil",
    "e2m1fn/1x32/e8m0-even",
    "e2m1fn/1x32/e8m0-nearest",
    "e2m1fn/1x32/e8m0-ceil-exponent",
    "e2m1fn/1x32/e8m0-four-thirds/stochastic",
    "e2m1fn/1x16/ue5m3",
    "e2m1fn/16x16/e4m3fn+fp32/stochastic",
    "e2m1fn/1x32/e8m0/nearest-even/hadamard32",
    "e4m3fn/1x32/e8m0/stochastic/hadamard64-fresh",
    "hif8/tensor/one/hybrid",
    "nf4/1x64/fp32/stochastic",
    "posit16_1/row/e8m0-headroom26",
)


def patterns(device: str) -> torch.Tensor:
    """Return float32 inputs: all bfloat16 values and 2**15 random bit patterns; no NaN."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    high, low = nc.Stream(1).bits((1 << 15,)), nc.Stream(2).bits((1 << 15,))
    x = torch.cat([every.view(torch.bfloat16).float(), ((high << 16) | low).view(torch.float32)])
    return x[~x.isnan()].to(device)


def matrix(device: str) -> torch.Tensor:
    """Return float32 ``[256, 512]``: sums of uniforms, spread over 2**-12 to 2**12 by row, with zeros and outliers."""
    uniform = nc.Stream(3).bits((4, 256, 512)).double() / 65536
    x = (uniform.sum(0) - 2).float() * torch.exp2((torch.arange(256) % 25 - 12).float())[:, None]
    x[7] = 0
    x[11, 5], x[13, 40] = 1e30, 1e-42
    return x.to(device)


def digest(*tensors: torch.Tensor) -> str:
    """Return the sha256 of the bytes of ``tensors``; all NaNs count alike (their bits differ by processor)."""
    sha = hashlib.sha256()
    for t in tensors:
        t = torch.where(t.isnan(), float("nan"), t) if t.is_floating_point() else t
        sha.update(t.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:32]


def digests(device: str) -> dict[str, str]:
    """Return the digest of the codes of every format and rounding, and of every cast's codes, scales and values."""
    x = patterns(device)
    draws = nc.Stream(4).bits(x.shape, device=device)
    modes = [m for m in nc.roundings().values() if "-" not in m.name or not m.random or m.name == "stochastic-8"]
    found = {"philox": digest(draws), "values": digest(x)}
    for name, fmt in nc.formats().items():
        if isinstance(fmt, Integer) and name not in INTEGERS:
            continue
        for mode in modes:
            found[f"{name}/{mode}"] = digest(fmt.encode(x, mode, draws), fmt.round(x, mode, draws))
    m = matrix(device)
    for spelling in CASTS:
        q = nc.quantize(m, spelling, seed=5)
        found[spelling] = digest(q.codes, q.scales, q.dequantize(), nc.cast(spelling).apply(m, nc.Stream(5)))
    return found


def main(arguments: list[str]) -> None:
    """Write the digests of one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else platform.machine()
    result = {"device": name, "torch": torch.__version__, "digests": digests(options.device)}
    path = options.out / f"codes-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['digests'])} digests on {name}, torch {torch.__version__}: {path}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
