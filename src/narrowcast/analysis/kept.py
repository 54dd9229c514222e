"""What compiled code keeps for the backward pass: every tensor, and the operation that made it.

The compiler sees both passes as one graph and decides by itself what to keep and what to make again. `kept` lets it
decide, as for a real run, and reads off what crosses from one pass to the other. Nothing is computed: under a
`FakeTensorMode` a model of any size takes no memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from narrowcast.names import dtype_name

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Row:
    """Tensors alike: what made them, their dtype and shape, how many there are, and the bytes of all."""

    made_by: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    bytes: int

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.bytes / _MEGABYTE:10.1f} MB  {self.count:3d} x {self.dtype:10s} {shape:18s} {self.made_by}"


def kept(run: Callable[..., Any], *inputs: Tensor) -> list[Row]:
    """Return what ``run(*inputs)`` keeps where it is compiled, largest first; parameters and inputs are left out.

    Tensors that share memory count once. Compiles with the partitioner of torch's default compiler, and runs the
    forward pass operation by operation: give it fake tensors for a large model.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    found: dict[fx.Node, Row] = {}

    def split(joint: fx.GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **how: Any) -> Any:
        first, second = min_cut_rematerialization_partition(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **how)
        output = next(node for node in first.graph.nodes if node.op == "output")
        for node in output.args[0][num_fwd_outputs:]:
            root = _root(node)
            if root.op != "placeholder" and isinstance(root.meta.get("val"), Tensor):
                found[root] = _row(root)
        return first, second

    def as_it_is(graph: fx.GraphModule, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=split, decompositions=select_decomp_table()
    )
    torch.compile(run, backend=backend, fullgraph=True)(*inputs)
    return _together(list(found.values()))


def _root(node: fx.Node) -> fx.Node:
    """Return the node whose memory ``node`` is a view of."""
    while node.op == "call_function" and _views(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _views(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.returns or not isinstance(node.meta.get("val"), Tensor):
        return False
    returned = schema.returns[0].alias_info
    return returned is not None and not returned.is_write


def _row(node: fx.Node) -> Row:
    value: Tensor = node.meta["val"]
    source = node
    while "getitem" in str(source.target) and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    size = value.numel() * value.element_size()
    return Row(str(source.target), dtype_name(value.dtype), tuple(value.shape), 1, size)


def _together(rows: list[Row]) -> list[Row]:
    alike: dict[tuple[str, str, tuple[int, ...]], Row] = {}
    for row in rows:
        key = (row.made_by, row.dtype, row.shape)
        before = alike.get(key)
        count, size = (before.count, before.bytes) if before else (0, 0)
        alike[key] = Row(*key, count + 1, size + row.bytes)
    return sorted(alike.values(), key=lambda row: -row.bytes)
