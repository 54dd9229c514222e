"""Models without weights: the modules are real, their parameters take no memory until they are filled.

A hollow model answers every question about names, kinds and shapes, and runs block by block where only one block is
filled at a time. Where `transformers` does not know an architecture, `skeleton` makes modules from the names and shapes
of the tensors alone: it can be looked at and quantized, but not run.
"""

import fnmatch
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from narrowcast.models.quiet import quiet

#: names of look-up tables in architectures that are known by their tensors alone
TABLES = ("*embed*", "*wte", "*wpe", "*emb")

_LARGE = 1 << 16  # elements; smaller ones may be part of a buffer's making


class _Unallocated(TorchFunctionMode):
    """Large tensors of no particular content, which parameters begin as, are not even reserved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None and _count(args) > _LARGE:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _count(sizes: Any) -> int:
    flat = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return math.prod(flat)


@contextmanager
def hollow() -> Iterator[None]:
    """Make modules that are built inside keep their parameters on the meta device; buffers are real."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":  # tied ones are on it already, and stay one
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    setattr(nn.Module, "register_parameter", without_memory)  # noqa: B010
    try:
        with _Unallocated():
            yield
    finally:
        setattr(nn.Module, "register_parameter", register)  # noqa: B010


def hollow_from_config(config: Any) -> nn.Module:
    """Return the hollow model of a `transformers` config: of its first architecture, else the causal language model."""
    with quiet(), hollow(), torch.random.fork_rng(devices=[]):
        import transformers

        name = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, name, None) if name else None
        make = kind if isinstance(kind, type) else transformers.AutoModelForCausalLM.from_config
        model: nn.Module = make(config)
        if hasattr(model, "tie_weights"):
            model.tie_weights()  # type: ignore[operator]
    return model.eval()


def skeleton(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Return hollow modules for tensors of these names and shapes.

    A matrix called ``weight`` becomes a linear layer, or a look-up table where its name says so (`TABLES`); everything
    else is a bare parameter. Children that are numbered from 0 on become a `ModuleList`.
    """
    tree: dict[str, Any] = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(f"{part}.", {})
        node[last] = shape
    with hollow():
        return _module("", tree).eval()


def _module(name: str, node: dict[str, Any]) -> nn.Module:
    children = {key[:-1]: _module(f"{name}.{key[:-1]}", child) for key, child in node.items() if key.endswith(".")}
    own = {key: shape for key, shape in node.items() if not key.endswith(".")}
    if not own and children and sorted(children) == sorted(map(str, range(len(children)))):
        return nn.ModuleList(children[str(i)] for i in range(len(children)))
    module = _leaf(name, own) if not children else nn.Module()
    for key, shape in own.items():
        if key not in module._parameters:
            module.register_parameter(key, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    for key, child in children.items():
        module.add_module(key, child)
    return module


def _leaf(name: str, own: dict[str, tuple[int, ...]]) -> nn.Module:
    weight = own.get("weight", ())
    if len(weight) == 4:
        return nn.Conv2d(weight[1], weight[0], (weight[2], weight[3]), bias="bias" in own, device="meta")
    if len(weight) != 2:
        return nn.Module()
    rows, columns = weight
    if any(fnmatch.fnmatch(name, pattern) for pattern in TABLES):
        return nn.Embedding(rows, columns, device="meta")
    return nn.Linear(columns, rows, bias="bias" in own, device="meta")


class Places:
    """Every place of a model where a parameter stands, so that it can be filled and emptied again.

    Attributes:
        names: of the parameters, one name each (tied ones bear the first of theirs).
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        self._alias: dict[str, str] = {}
        self.names: dict[str, nn.Parameter] = {}
        first: dict[int, str] = {}
        for module_name, module in model.named_modules(remove_duplicate=False):
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                name = f"{module_name}.{attribute}" if module_name else attribute
                canonical = first.setdefault(id(parameter), name)
                self._alias[name] = canonical
                self.names.setdefault(canonical, parameter)
        for module in model.modules():
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._places.setdefault(id(parameter), []).append((module, attribute))
        self._by_name = {name: self._places[id(parameter)] for name, parameter in self.names.items()}

    def canonical(self, name: str) -> str | None:
        """Return the name that the parameter called ``name`` bears here, None where there is no such parameter."""
        return self._alias.get(name)

    def fill(self, name: str, value: Tensor) -> None:
        """Put ``value`` into every place of the parameter ``name`` (canonical)."""
        self._put(name, nn.Parameter(value, requires_grad=False))

    def empty(self, name: str) -> None:
        """Take the parameter's memory away again."""
        self._put(name, self.names[name])

    def value(self, name: str) -> Tensor:
        """Return what stands there now."""
        module, attribute = self._by_name[name][0]
        found = module._parameters[attribute]
        assert found is not None
        return found

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for module, attribute in self._by_name[name]:
            module._parameters[attribute] = parameter
