"""What a recipe changes of a model besides the gemms of its linear layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import nn

from narrowcast.nn.convert import Site


class Change(ABC):
    """A swap of modules, as data: frozen, with its source in its docstring."""

    @abstractmethod
    def swap(self, name: str, module: nn.Module, backend: str) -> nn.Module | None:
        """Return what takes the place of ``module``, parameters kept under their names; None to leave it."""

    @abstractmethod
    def __str__(self) -> str:
        """Say in a few words what it changes."""

    @property
    @abstractmethod
    def wants(self) -> str:
        """Say what it looks for."""

    def apply(self, model: nn.Module, backend: str) -> list[Site]:
        """Change ``model`` in place and return a row for each place, or one that says that there is none."""
        rows = []
        for name, module, put in list(_places(model)):
            made = self.swap(name, module, backend)
            if made is not None:
                put(made)
                shape = next((tuple(p.shape) for p in module.parameters()), ())
                rows.append(Site(name, type(module).__name__, shape, "changed", "torch", str(self), str(self)))
        return rows or [Site("", str(self), (), "absent", "torch", "", f"the model has no {self.wants}")]


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], None]]]:
    """Yield (name, module, how to replace it) for every module below ``model``; one that is shared, at each place."""
    for path, parent in model.named_modules():
        for child, module in parent.named_children():

            def put(made: nn.Module, parent: nn.Module = parent, child: str = child) -> None:
                setattr(parent, child, made)

            yield f"{path}.{child}" if path else child, module, put
