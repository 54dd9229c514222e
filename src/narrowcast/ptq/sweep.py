"""GPTQ's pass over the columns: round one, and let those still to come repair its error.

The matrix is held with its columns as rows, so that each is contiguous. A block of columns is settled among itself,
then one product carries its errors to all later columns. Whatever rounds a column is the cast's own emulation, a
handful of small operations: on a CUDA device those of one block are recorded once and replayed for every block (a CUDA
graph), since launching them one by one takes several times as long as running them. The numbers are the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from narrowcast.quantize import Settled

#: settles a block in place: (columns ``[B, N]``, their part of U ``[B, B]``, factors in, factors back) -> errors
Block = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, ...]], Tensor]


def sweep(work: Tensor, upper: Tensor, settled: Settled, order: Tensor | None, block: int) -> Tensor:
    """Return each column of ``work`` ``[N, K]`` as it was when it was rounded.

    Args:
        work: the weights, float32.
        upper: U ``[K, K]`` of the columns in the order in which they are taken.
        settled: the cast and its scales.
        order: the columns in that order, or None for their own.
        block: columns whose errors are carried on together.
    """
    into, back = settled.factors()
    columns, into, back = _turned(work, order), _turned(into, order), tuple(_turned(f, order) for f in back)
    settle = _recorded(settled, columns, upper, into, back, block) if work.is_cuda else _eager(settled)
    total = len(columns)
    for start in range(0, total, block):
        here = slice(start, min(start + block, total))
        whole = here.stop - start == block
        run = settle if whole else _eager(settled)
        errors = run(columns[here], upper[here, here], into[..., here, :], tuple(f[..., here, :] for f in back))
        columns[here.stop :].addmm_(upper[here, here.stop :].mT, errors, alpha=-1)
    if order is None:
        return columns.mT.contiguous()
    found = torch.empty_like(columns)
    found[order] = columns
    return found.mT.contiguous()


def _turned(x: Tensor, order: Tensor | None) -> Tensor:
    """Return ``x`` ``[..., N, K]`` as ``[..., K, N]`` in order."""
    turned = x.mT if order is None else x.mT.index_select(-2, order)
    return turned.clone(memory_format=torch.contiguous_format)


def _eager(settled: Settled) -> Block:
    def run(columns: Tensor, upper: Tensor, into: Tensor, back: tuple[Tensor, ...]) -> Tensor:
        errors = torch.empty_like(columns)
        for i in range(len(columns)):
            value = settled.round(columns[i], into[..., i, :], tuple(factor[..., i, :] for factor in back))
            errors[i] = (columns[i] - value) / upper[i, i]
            columns[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]
        return errors

    return run


def _recorded(
    settled: Settled, columns: Tensor, upper: Tensor, into: Tensor, back: tuple[Tensor, ...], block: int
) -> Block:
    """Return `_eager` on blocks of ``block`` columns as one CUDA graph over buffers of its own."""
    eager = _eager(settled)
    if len(columns) < 2 * block:
        return eager  # nothing to replay
    here = slice(0, block)
    held = (columns[here].clone(), upper[here, here].clone(), into[..., here, :].clone())
    held_back = tuple(factor[..., here, :].clone() for factor in back)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # tables and workspaces are made before the recording
        eager(held[0].clone(), held[1], held[2], held_back)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        errors = eager(*held, held_back)

    def run(columns: Tensor, upper: Tensor, into: Tensor, back: tuple[Tensor, ...]) -> Tensor:
        for buffer, source in zip((*held, *held_back), (columns, upper, into, *back), strict=True):
            buffer.copy_(source)
        graph.replay()
        columns.copy_(held[0])
        return errors

    return run
