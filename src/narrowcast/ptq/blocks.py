"""A model as a list of like blocks with something before and after, and how to run one block at a time.

One pass shows how each block is called. Then only one block's input is kept per calibration batch: each block hands its
output to the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from narrowcast.errors import InputError

#: runs the model once on one calibration batch
Forward = Callable[[], object]


@dataclass
class Call:
    """How a block is called: first argument apart from the rest."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    axes: int = 0  # of the hidden state

    def run(self, block: nn.Module, hidden: Tensor | None = None) -> Tensor:
        """Return the block's first output, for ``hidden`` instead of the call's own where given."""
        out: Any = block(self.hidden if hidden is None else hidden, *self.args, **self.kwargs)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return (name, blocks) of the list of like modules with most parameters; (``""``, [model]) if there is none."""
    best: tuple[str, list[nn.Module]] = ("", [model])
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and len(module) > 1:
            size = sum(p.numel() for p in module.parameters())
            if size > most:
                best, most = (name, list(module)), size
    return best


def record(blocks: list[nn.Module], forward: Forward) -> list[Call]:
    """Run ``forward`` and return how each block was called; only the first one's hidden state is kept."""
    calls: list[Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(_call(args, kwargs, keep=not calls))

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    _check(calls, blocks)
    return calls


def record_around(blocks: list[nn.Module], forward: Forward) -> tuple[list[Call], bool]:
    """Like `record`, but no block runs: each is passed over, so that what stands before them is enough.

    Returns the calls, and whether the model takes a block's output for a tuple. Blocks whose arguments depend on what
    an earlier block computed cannot be recorded so.
    """
    wrong = ""
    for wrap in (False, True):  # some models take a block's output as it is, some the first of a tuple
        calls: list[Call] = []

        def note(number: int, args: Any, kwargs: Any, calls: list[Call] = calls) -> Tensor:
            calls.append(_call(args, kwargs, keep=not calls))
            if len(calls) == len(blocks):
                raise _Recorded
            return _hidden(args, kwargs)

        try:
            with replaced(blocks, note, wrap):
                forward()
        except _Recorded:
            pass
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            wrong = str(error)
            continue
        if len({call.axes for call in calls}) == 1:
            _check(calls, blocks)
            return calls, wrap
    raise InputError(f"the model's blocks cannot be run one by one ({wrong or 'they do not hand on one tensor'})")


class _Recorded(Exception):  # noqa: N818 - no error: enough has been seen
    """All blocks have been called."""


def _call(args: Any, kwargs: Any, keep: bool) -> Call:
    hidden = _hidden(args, kwargs)
    rest = tuple(map(_without_cache, args[1:]))
    kept = {k: _without_cache(v) for k, v in kwargs.items() if k != "hidden_states"}
    first = hidden if keep else hidden.new_empty(0)
    return Call(first.detach(), rest, kept, hidden.dim())


def _without_cache(value: Any) -> Any:
    """Return ``value``, or None for a cache of keys and values: it would grow with every run of the block."""
    return None if type(value).__name__.endswith("Cache") else value


def _hidden(args: Any, kwargs: Any) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _check(calls: list[Call], blocks: list[nn.Module]) -> None:
    if len(calls) != len(blocks):
        raise InputError(f"the model ran {len(calls)} of its {len(blocks)} blocks in one pass; expected each once")


@contextmanager
def replaced(blocks: list[nn.Module], instead: Callable[[int, Any, Any], Tensor], wrap: bool = False) -> Iterator[None]:
    """Have ``instead(number, args, kwargs)`` answer for every block, as a tuple of one where ``wrap``."""

    def answer(number: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            out = instead(number, args, kwargs)
            return (out,) if wrap else out

        return forward

    for number, block in enumerate(blocks):
        block.__dict__["forward"] = answer(number)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def run_around(blocks: list[nn.Module], forward: Forward, last: Tensor, wrap: bool) -> Any:
    """Return what ``forward`` returns where ``last`` is the output of the last block and no block runs."""
    with replaced(blocks, lambda number, args, kwargs: last, wrap):
        return forward()
