"""Optimizer steps: the fused kernel against the plain update, every part of the state bit for bit."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.names import dtype_name
from narrowcast.optim import NarrowOptimizer
from narrowcast.verify.finding import different
from narrowcast.verify.inputs import INPUTS

DTYPES = (torch.bfloat16, torch.float32)  # of parameters and gradients
SIZES = ((3, 384), (1, 128), (4, 75), (1, 7))  # the first two are read 16 bytes at a time
STEPS = 2


@dataclass
class OptimizerFinding:
    """What was found of one optimizer.

    Attributes:
        optimizer: its name.
        parts, differing: tensors of parameters and states compared after each step, and how many differ.
        first: the first difference, in words.
    """

    optimizer: str
    parts: int = 0
    differing: int = 0
    first: str = ""

    @property
    def ok(self) -> bool:
        """Whether native is emulate."""
        return self.differing == 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "ok": self.ok}


def verify_optimizer(name: str, device: torch.device, *, seed: int = 0, quick: bool = False) -> OptimizerFinding:
    """Return what was found of an optimizer's steps on `INPUTS` as gradients.

    Args:
        name: of `nc.optimizers()`.
        device: where the kernel runs; a CPU under TRITON_INTERPRET=1.
        seed: of parameters, gradients and random bits.
        quick: bfloat16 only, and a single step.
    """
    finding = OptimizerFinding(name)
    for dtype in DTYPES[:1] if quick else DTYPES:
        for kind in INPUTS:
            _verify(finding, kind, dtype, device, seed, 1 if quick else STEPS)
    return finding


def _verify(
    finding: OptimizerFinding, kind: str, dtype: torch.dtype, device: torch.device, seed: int, steps: int
) -> None:
    generator = torch.Generator(device).manual_seed(seed)
    start = [_drawn("normal", size, generator).to(dtype) for size in SIZES]
    sides = [[nn.Parameter(p.clone()) for p in start] for _ in "ab"]
    native, plain = (
        NarrowOptimizer(side, finding.optimizer, lr=1e-2, seed=seed, backend=backend)
        for side, backend in zip(sides, ("native", "emulate"), strict=True)
    )
    for step in range(1, steps + 1):
        for size, p, q in zip(SIZES, *sides, strict=True):
            p.grad = _drawn(kind, size, generator).to(dtype)
            q.grad = p.grad.clone()
        native.step()
        plain.step()
        for number, (p, q) in enumerate(zip(*sides, strict=True)):
            where = f"parameter {number} of {kind} {dtype_name(dtype)} after step {step}"
            _count(finding, p.detach(), q.detach(), where)
            for part, state in plain.state[q].items():
                _count(finding, native.state[p][part], state, f"{part} of {where}")


def _drawn(kind: str, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return INPUTS[kind](torch.randn(size, generator=generator, device=generator.device))


def _count(finding: OptimizerFinding, found: Tensor, want: Tensor, what: str) -> None:
    finding.parts += 1
    wrong = different(found, want)
    if wrong:
        finding.differing += 1
        finding.first = finding.first or f"{what}: {wrong}"
