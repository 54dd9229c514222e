"""All recipes and optimizers, some at a time: a first run spends most of its time compiling kernels, on one core."""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from narrowcast.verify.checks import SHAPES, SMALL, verify
from narrowcast.verify.finding import Finding
from narrowcast.verify.states import OptimizerFinding, verify_optimizer

MEMORY = 4 << 30  # bytes of the machine's memory that a process may come to use: torch, and a compiler


@dataclass(frozen=True)
class Job:
    """One recipe, or one optimizer's steps; ``quick``: one small shape."""

    kind: str
    name: str
    device: str
    seed: int
    quick: bool

    def run(self) -> list[Finding] | OptimizerFinding:
        """Return what was found; nothing of a recipe without narrow layers."""
        device = torch.device(self.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(invalid value|divide by zero)", RuntimeWarning)  # the interpreter's
            if self.kind == "optimizer":
                return verify_optimizer(self.name, device, seed=self.seed, quick=self.quick)
            return verify([self.name], device, shapes=SMALL if self.quick else SHAPES, seed=self.seed)


def verify_all(
    names: Iterable[str],
    states: Iterable[str],
    device: torch.device,
    *,
    seed: int = 0,
    quick: bool = False,
    processes: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[list[Finding], list[OptimizerFinding]]:
    """Return a finding for each recipe that narrows linear layers, and for each optimizer.

    Args:
        names, states: recipes, and optimizers.
        device: where the kernels run; a CPU under TRITON_INTERPRET=1.
        seed: of the inputs and the random bits.
        quick: one small shape.
        processes: that work side by side; None for `_side_by_side` on a GPU, and this one alone on a CPU.
        note: called with the name of each as it is done.
    """
    jobs = [Job("recipe", name, str(device), seed, quick) for name in names]
    jobs += [Job("optimizer", name, str(device), seed, quick) for name in states]
    if processes is None:
        processes = _side_by_side(len(jobs)) if device.type == "cuda" else 1
    found = []
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            futures: list[Future[list[Finding] | OptimizerFinding]] = []
            for job in jobs:
                futures.append(pool.submit(job.run))
                futures[-1].add_done_callback(lambda _, name=job.name: note(name))  # type: ignore[misc]
            found = [future.result() for future in futures]
    else:
        for job in jobs:
            found.append(job.run())
            note(job.name)
    recipes = [finding for lot in found if isinstance(lot, list) for finding in lot]
    return recipes, [finding for finding in found if isinstance(finding, OptimizerFinding)]


def _side_by_side(jobs: int) -> int:
    """Return how many processes work at a time: one a core, of which one is left, as far as memory lasts."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(jobs, (os.cpu_count() or 2) - 1, memory // MEMORY))
