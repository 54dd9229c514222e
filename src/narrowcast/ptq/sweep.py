"""GPTQ's passes over the columns: round one, and let those still to come repair its error; then improve one by one.

The matrix is held with its columns as rows, so that each is contiguous. A block of columns is settled among itself,
then one product carries its errors to all later columns. Whatever rounds a column is the cast's own emulation, a
handful of small operations: on a CUDA device those of one block are recorded once and replayed for every block (a CUDA
graph), since launching them one by one takes several times as long as running them. The numbers are the same.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from narrowcast.quantize import Settled

#: works on one block: tensors ``[..., B, N]`` or ``[B, B]``, the first one in place; returns ``[B, N]``
Block = Callable[..., Tensor]


def sweep(work: Tensor, upper: Tensor, settled: Settled, order: Tensor | None, block: int) -> Tensor:
    """Return each column of ``work`` ``[N, K]`` as it was when it was rounded.

    Args:
        work: the weights, float32.
        upper: U ``[K, K]`` of the columns in the order in which they are taken.
        settled: the cast and its scales.
        order: the columns in that order, or None for their own.
        block: columns whose errors are carried on together.
    """
    columns, factors = _turned(work, order), _factors(settled, order)

    def settle(columns: Tensor, upper: Tensor, into: Tensor, *back: Tensor) -> Tensor:
        errors = torch.empty_like(columns)
        for i in range(len(columns)):
            value = settled.round(columns[i], into[..., i, :], tuple(factor[..., i, :] for factor in back))
            errors[i] = (columns[i] - value) / upper[i, i]
            columns[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]
        return errors

    for here, run in _blocks(settle, block, lambda part: (columns[part], upper[part, part], *_at(factors, part))):
        errors = run()
        columns[here.stop :].addmm_(upper[here, here.stop :].mT, errors, alpha=-1)
    return _back(columns, order)


def descend(values: Tensor, weight: Tensor, h: Tensor, settled: Settled, order: Tensor | None, block: int) -> Tensor:
    """Return ``values`` ``[N, K]`` improved: each column in turn takes the grid's best answer to all the others.

    With ``d = w - q``, the error ``tr(d H d^T)`` as a function of column i alone is least at ``q_i + (d H)_i / H_ii``,
    so the grid value nearest to that never makes it worse (coordinate descent; Behdin et al. 2023, "QuantEase").

    Args:
        values, weight: the quantized and the wide weights, float32.
        h: H, damped, of the columns in the order in which they are taken.
        settled, order, block: as for `sweep`.
    """
    columns, wide, factors = _turned(values, order), _turned(weight, order), _factors(settled, order)
    pull = h @ (wide - columns)

    def improve(columns: Tensor, pull: Tensor, h: Tensor, into: Tensor, *back: Tensor) -> Tensor:
        pull, change = pull.clone(), torch.empty_like(columns)
        for i in range(len(columns)):
            wanted = columns[i] + pull[i] / h[i, i]
            value = settled.round(wanted, into[..., i, :], tuple(factor[..., i, :] for factor in back))
            change[i] = value - columns[i]
            pull -= h[:, i, None] * change[i]
            columns[i] = value
        return change

    def parts(part: slice) -> tuple[Tensor, ...]:
        return columns[part], pull[part], h[part, part], *_at(factors, part)

    for here, run in _blocks(improve, block, parts):
        pull.addmm_(h[:, here], run(), alpha=-1)
    return _back(columns, order)


def _factors(settled: Settled, order: Tensor | None) -> tuple[Tensor, ...]:
    """Return what multiplies in and what multiplies back, turned."""
    into, back = settled.factors()
    return tuple(_turned(factor, order) for factor in (into, *back))


def _at(factors: tuple[Tensor, ...], part: slice) -> tuple[Tensor, ...]:
    return tuple(factor[..., part, :] for factor in factors)


def _turned(x: Tensor, order: Tensor | None) -> Tensor:
    """Return ``x`` ``[..., N, K]`` as ``[..., K, N]`` in order."""
    turned = x.mT if order is None else x.mT.index_select(-2, order)
    return turned.clone(memory_format=torch.contiguous_format)


def _back(columns: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return columns.mT.contiguous()
    found = torch.empty_like(columns)
    found[order] = columns
    return found.mT.contiguous()


def _blocks(
    function: Block, block: int, parts: Callable[[slice], tuple[Tensor, ...]]
) -> Iterator[tuple[slice, Callable[[], Tensor]]]:
    """Yield each block of columns with what runs ``function`` on its ``parts``, the first of them in place."""
    total = len(parts(slice(None))[0])
    recorded = parts(slice(None))[0].is_cuda and total >= 2 * block  # else there is nothing to replay
    replay = _recorded(function, parts(slice(0, block))) if recorded else function
    for start in range(0, total, block):
        here = slice(start, min(start + block, total))
        run = replay if here.stop - start == block else function
        yield here, lambda run=run, here=here: run(*parts(here))  # type: ignore[misc]


def _recorded(function: Block, example: tuple[Tensor, ...]) -> Block:
    """Return ``function`` as one CUDA graph over buffers of its own, for arguments shaped as ``example``."""
    held = tuple(x.clone() for x in example)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # tables and workspaces are made before the recording
        function(held[0].clone(), *held[1:])
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function(*held)

    def run(*arguments: Tensor) -> Tensor:
        for buffer, source in zip(held, arguments, strict=True):
            buffer.copy_(source)
        graph.replay()
        arguments[0].copy_(held[0])
        return found

    return run
