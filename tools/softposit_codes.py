"""Digest what SoftPosit encodes, for tests that run without it: ``python tools/softposit_codes.py``.

Needs ``pip install softposit==0.3.4.4`` (built from C, so it is no requirement of the tests). For every posit type that
it converts to and every bfloat16 and float16 input, the codes as little-endian uint16, hashed.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "tests" / "formats" / "data" / "softposit.json"
TWO = (4, 6, 8, 12, 16)  # widths of the types with two exponent bits


def inputs() -> dict[str, np.ndarray]:
    """Return all bfloat16 and all float16 values, as float64."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        return {
            "bfloat16": (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64),
            "float16": bits.view(np.float16).astype(np.float64),
        }


def encoders() -> dict[str, Callable[[float], int]]:
    """Return SoftPosit's conversion from double to each type."""
    import softposit

    found: dict[str, Callable[[float], int]] = {
        "posit8_0": lambda x: softposit.posit8(x).v.v & 0xFF,
        "posit16_1": lambda x: softposit.posit16(x).v.v & 0xFFFF,
    }
    for n in TWO:
        found[f"posit{n}_2"] = lambda x, n=n: softposit.convertDoubleToPX2(x, n).v >> (32 - n)
    return found


def digest(codes: np.ndarray) -> str:
    """Return the sha256 of codes."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype="<u2").tobytes()).hexdigest()


def main() -> None:
    """Write the digests."""
    found = {
        f"{name}/{kind}": digest(np.array([encode(float(v)) for v in x]))
        for name, encode in encoders().items()
        for kind, x in inputs().items()
    }
    result = {"softposit": version("softposit"), "numpy": np.__version__, "codes": found}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(found)} digests: {OUT}")


if __name__ == "__main__":
    main()
