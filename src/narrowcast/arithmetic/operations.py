"""Which operations of a program compute floating-point numbers, and which only move, make or look at them.

Operations are told apart by what their schema says (views, writes) and, for those that merely move numbers, by the one
table below. An operation that no table knows is taken to compute: rounding a number that is already in the format
changes nothing, leaving one unrounded would go unseen.
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from narrowcast.errors import InputError
from narrowcast.formats import Format, format

_MOVES = """
    _unsafe_view cat clone constant_pad_nd copy copy_ diag_embed diagonal_copy diagonal_scatter embedding
    expand_copy flip gather index index_copy index_copy_ index_fill index_fill_ index_select lift
    lift_fresh_copy masked_fill masked_fill_ masked_scatter masked_scatter_ masked_select permute_copy
    reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d
    replication_pad3d roll rot90 select_backward select_copy select_scatter set_ resize_ slice_backward
    slice_copy slice_scatter sort split_with_sizes_copy squeeze_copy stack t_copy take topk transpose_copy
    tril tril_ triu triu_ unsqueeze_copy view_copy where
"""
#: operations that put numbers elsewhere, as they are (base names of aten)
MOVES = frozenset(_MOVES.split())
#: the same where an argument does not make them add up or replace by an operation
MOVES_UNLESS = {"index_put": "accumulate", "index_put_": "accumulate", "scatter": "reduce", "scatter_": "reduce"}
#: memory without numbers in it yet
EMPTY = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"])
#: arguments that an operation writes without saying so in its schema
HIDDEN_WRITES = {"native_batch_norm": ("running_mean", "running_var")}


#: fused operations that PyTorch's core decompositions keep whole, and `steps` takes apart
_FUSED = """
    _log_softmax _softmax addmm addmv elu gelu leaky_relu linalg_vector_norm mean native_batch_norm native_group_norm
    native_layer_norm var
"""


def base_name(op: OpOverload) -> str:
    """Return ``add_`` for ``aten.add_.Tensor``."""
    return str(op._schema.name).partition("::")[2]


def public_name(name: str) -> str:
    """Return ``softmax`` for ``_softmax``, ``add`` for ``add_``: what a user would call it."""
    return name.strip("_")


def _has_kernel(full_name: str, *keys: str) -> bool:
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key) for key in keys)


@lru_cache(maxsize=4096)
def is_composite(full_name: str) -> bool:
    """Whether the operation is made of others and has no kernel of its own: those are met in its stead."""
    own = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "Meta")
    return _has_kernel(full_name, "CompositeImplicitAutograd") and not _has_kernel(full_name, *own)


def untouched(op: OpOverload, arguments: Mapping[str, Any]) -> str | None:
    """Return why the results of ``op`` are left as they are, or None where it computes."""
    name = base_name(op)
    if op.namespace == "profiler":
        return "a mark of the profiler"
    if op.is_view or _only_aliases(op):
        return "a view"
    if name in EMPTY:
        return "memory without numbers yet"
    if name in MOVES or (name in MOVES_UNLESS and not arguments.get(MOVES_UNLESS[name])):
        return "moves numbers"
    if name == "_to_copy" and _keeps_dtype(arguments):
        return "moves numbers"
    return None


def _keeps_dtype(arguments: Mapping[str, Any]) -> bool:
    wanted = arguments.get("dtype")
    return wanted is None or wanted == arguments["self"].dtype


@lru_cache(maxsize=4096)
def _only_aliases(op: OpOverload) -> bool:
    returns = op._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def named_arguments(op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their schema's names."""
    names = [argument.name for argument in op._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def written(op: OpOverload, arguments: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a call of ``op`` writes in place, ``out=`` among them."""
    hidden = HIDDEN_WRITES.get(base_name(op), ())
    found: list[Tensor] = []
    for argument in op._schema.arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes or argument.name in hidden:
            found.extend(tensors(arguments.get(argument.name)))
    return found


@lru_cache(maxsize=1)
def steps() -> dict[OpOverload, Callable[..., Any]]:
    """Return PyTorch's decompositions of fused operations into elementary ones."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    fused, overloads = _FUSED.split(), {op: f for op, f in decomposition_table.items() if isinstance(op, OpOverload)}
    kept_whole = {op: f for op, f in overloads.items() if op.namespace == "aten" and base_name(op) in fused}
    core = {op: f for op, f in core_aten_decompositions().items() if isinstance(op, OpOverload)}
    return {**core, **kept_whole}


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nest of lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors(item)


class Exceptions:
    """What some operations are rounded to instead: patterns of names to formats, None for not at all.

    A pattern is matched (as by `fnmatch`) against an operation's base name in aten, with or without the underscores
    around it: ``softmax`` means ``_softmax``, ``add`` means ``add_`` too, ``*norm*`` all norms and their gradients.
    The first pattern that matches decides.
    """

    def __init__(self, patterns: "Mapping[str, str | Format | None]") -> None:
        self.formats = {p: None if f is None else format(f) for p, f in patterns.items()}
        self.met: set[str] = set()
        known = _known_names() if patterns else {}
        for pattern in patterns:
            names = [n for n in known if _matches(pattern, n)]
            if not names:
                close = ", ".join(get_close_matches(pattern, map(public_name, known), n=3))
                raise InputError(
                    f"exception {pattern!r} matches no operation of aten{'; nearest: ' * bool(close)}{close}"
                )
            if all(known[n] for n in names):
                raise InputError(
                    f"exception {pattern!r} names an operation that is made of others and never met itself; name those "
                    "(a linear layer is mm and addmm); the table of a run lists all that were met"
                )

    def unmet(self) -> list[str]:
        """Return the patterns that no operation has met so far."""
        return [pattern for pattern in self.formats if pattern not in self.met]

    def pattern_for(self, name: str) -> str | None:
        """Return the pattern that decides for the operation ``name``, or None."""
        found = next((p for p in self.formats if _matches(p, name)), None)
        if found is not None:
            self.met.add(found)
        return found


def _matches(pattern: str, name: str) -> bool:
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, public_name(name)))


@lru_cache(maxsize=1)
def _known_names() -> dict[str, bool]:
    """Return every operation of aten by base name, and whether all its overloads are composite."""
    known: dict[str, bool] = {}
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        if space != "aten":
            continue
        name, _, overload = rest.partition(".")
        if "out" not in overload:  # generated for every operation, and met only by who writes out=
            known[name] = known.get(name, True) and is_composite(full)
    return known
