"""The layouts of quantized checkpoints that can be read. A new one is one file and one row here."""

from typing import Any

from narrowcast.errors import InputError
from narrowcast.io.foreign.awq import open_awq
from narrowcast.io.foreign.bitsandbytes import open_bitsandbytes
from narrowcast.io.foreign.compressed import open_compressed
from narrowcast.io.foreign.fp8 import open_fp8
from narrowcast.io.foreign.fp_quant import open_fp_quant
from narrowcast.io.foreign.gptq import open_gptq
from narrowcast.io.foreign.modelopt import open_modelopt
from narrowcast.io.foreign.native import open_native
from narrowcast.io.foreign.reader import Open, Reader

LAYOUTS: dict[str, Open] = {
    "narrowcast": open_native,
    "compressed-tensors": open_compressed,
    "gptq": open_gptq,
    "awq": open_awq,
    "bitsandbytes (4-bit)": open_bitsandbytes,
    "fp8": open_fp8,
    "modelopt": open_modelopt,
    "fp_quant": open_fp_quant,
}


def reader_of(config: dict[str, Any], names: frozenset[str], what: str) -> Reader:
    """Return how to read the weights of a checkpoint with this ``quantization_config``.

    Raises InputError where its layout is not known.
    """
    for row in LAYOUTS.values():
        try:
            found = row(config, names)
        except InputError as error:
            raise InputError(f"model {what}: {error}") from None
        if found is not None:
            return found
    method = config.get("quant_method")
    raise InputError(f"model {what}: quant_method {method!r} is no layout known here; known: {', '.join(LAYOUTS)}")
