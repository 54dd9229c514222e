"""Peers that are loaded without what they ask for: llm-compressor's GPTQ core, matrices in and matrices out.

    pip install --no-deps --target build/peers llmcompressor==0.14.0.1 loguru==0.7.3

The package pins other versions of transformers and compressed-tensors and brings data sets, accelerate and auto-round
along; its GPTQ core needs none of them. So its two files are imported as they are, without running the package's own
`__init__`.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrowcast.ptq.gptq import Solution, Solver
from narrowcast.quantize import Settled

PLACE = Path(__file__).parent.parent / "build" / "peers"


def llmcompressor_gptq(place: Path = PLACE) -> Any:
    """Return llm-compressor's ``quantize_weight``, or None where it is not there."""
    root = place / "llmcompressor"
    if not root.is_dir():
        return None
    sys.path.insert(0, str(place))
    for name in ("", "modifiers", "modifiers/gptq"):
        dotted = ".".join(["llmcompressor", *filter(None, name.split("/"))])
        package = types.ModuleType(dotted)
        package.__path__ = [str(root / name)]
        sys.modules[dotted] = package
    return importlib.import_module("llmcompressor.modifiers.gptq.gptq_quantize").quantize_weight


def version(place: Path = PLACE) -> str:
    """Return the peer's version."""
    found = next(place.glob("llmcompressor-*.dist-info"), None)
    return found.name.removesuffix(".dist-info").replace("-", " ") if found else ""


def arguments(group: int, order: bool) -> Any:
    """Return the peer's description of symmetric 4-bit integers in groups."""
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=group, actorder="static" if order else None
    )


def peer_gptq(
    core: Any, weight: Tensor, hessian: Tensor, scale: Tensor, group: int, order: bool, damping: float
) -> Tensor:
    """Return the peer's values for ``weight`` ``[N, K]`` under given scales ``[N, K / group]``; inputs are kept."""
    zero = torch.zeros_like(scale)
    found, _, _ = core(
        weight.float().clone()[None], hessian.float().clone()[None], scale[None], zero[None], None,
        arguments(group, order), blocksize=128, percdamp=damping,
    )  # fmt: skip
    return found[0]


class PeerSolver(Solver):
    """The peer's core as a solver of our pipeline: same calibration, same scales, its arithmetic."""

    def solve(self, weight: Tensor, hessian: Tensor, settled: Settled) -> Solution:
        """Return what the peer finds; codes are ours of its values."""
        core = llmcompressor_gptq()
        group = settled.cast.tile.cols
        short = -weight.shape[1] % group
        wide = torch.nn.functional.pad(weight, (0, short))
        h = torch.nn.functional.pad(hessian, (0, short, 0, short))
        scale = settled.scale.back[0][..., 0]
        found = peer_gptq(core, wide, h, scale, group, self.order, self.damping)[:, : weight.shape[1]].contiguous()
        return Solution(settled.quantize(found), found, self.damping)
