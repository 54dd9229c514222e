"""A model folder opened without its weights, which come and go by name.

What is filled counts: `HollowModel.peak` is the largest number of bytes that parameters held at once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.rowwise import Rowwise
from narrowcast.io.weights import Stored, folder_weights, read_json
from narrowcast.models.checkpoint_names import Origin, origins
from narrowcast.models.hollow import Places, hollow_from_config, skeleton


@dataclass
class HollowModel:
    """A model whose parameters are filled from its folder on demand, as float32.

    Attributes:
        folder: where it came from.
        settings: its config.json.
        model: the modules; runs where what it needs is filled.
        weights: the checkpoint's tensors by name, unread.
        known: whether `transformers` knows the architecture; if not, the modules are made from names and shapes, and
            nothing can be run.
        device: where parameters are filled.
        peak: most bytes that were filled at once.
        kept_as: dtype that parameters which stay wide will be stored in; None for the checkpoint's own.
    """

    folder: Path
    settings: dict[str, Any]
    model: nn.Module
    weights: dict[str, Stored]
    known: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    peak: int = 0
    kept_as: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.places = Places(self.model)
        self._origin: dict[str, Origin] = {}
        self._buffers: list[Origin] = []
        for origin in origins(self.model, list(self.weights), str(self.folder)):
            for target in origin.targets:
                name = self.places.canonical(target)
                if name is not None:
                    self._origin.setdefault(name, origin)
            if any(self.places.canonical(target) is None for target in origin.targets):
                self._buffers.append(origin)
        self._filled: dict[str, int] = {}
        self._check_shapes()

    @property
    def tokenizer(self) -> Path | None:
        """The folder's tokenizer.json, None where it has none."""
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    def names(self, prefix: str = "", outside: str | None = None) -> list[str]:
        """Return the parameters whose names begin with ``prefix``, or with anything but ``outside``."""
        return [n for n in self.places.names if n.startswith(prefix) and not (outside and n.startswith(outside))]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the checkpoint stores the parameter in."""
        return self.weights[self._origin[name].sources[0]].dtype

    def kept_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the parameter will be stored in if it stays wide."""
        own = self.dtype(name)
        return own if self.kept_as is None or not own.is_floating_point else self.kept_as

    def stored_bytes(self, name: str) -> int:
        """Return what the parameter takes in the checkpoint."""
        return self.places.names[name].numel() * self.dtype(name).itemsize

    def kept_bytes(self, name: str) -> int:
        """Return what the parameter will take if it stays wide."""
        return self.places.names[name].numel() * self.kept_dtype(name).itemsize

    def load(self, names: Iterable[str]) -> None:
        """Fill parameters that are not filled yet."""
        made: dict[str, Tensor] = {}
        for name in names:
            if name in self._filled:
                continue
            if name not in made:
                made = self._make(self._origin[name])
            value = made.pop(name).to(self.device, torch.float32)
            self.places.fill(name, value)
            self._filled[name] = value.nbytes
            self._note(0)

    def _note(self, more: int) -> None:
        """Take down that ``more`` bytes are in memory beside what is filled."""
        self.peak = max(self.peak, more + sum(self._filled.values()))

    def load_buffers(self) -> None:
        """Fill the buffers that the checkpoint holds: they are small, and stay."""
        buffers = dict(self.model.named_buffers())
        for origin in self._buffers:
            for name, value in origin.make(self.model, lambda n: self.weights[n].read()).items():
                if name in buffers:
                    buffers[name].copy_(value)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def release(self, names: Iterable[str]) -> None:
        """Take the memory of parameters away."""
        for name in names:
            if self._filled.pop(name, None) is not None:
                self.places.empty(name)

    def wide(self, name: str) -> Tensor:
        """Return the parameter in the dtype that it will be stored in; one that is not filled is read for it."""
        if name not in self._filled:
            value = self._make(self._origin[name])[name].to(self.kept_dtype(name)).contiguous()
            self._note(value.nbytes)
            return value
        return self.places.value(name).detach().to("cpu", self.kept_dtype(name)).contiguous()

    @torch.no_grad()
    def settle(self, names: Iterable[str]) -> None:
        """Round filled parameters to the dtype that they will be stored in, so that what ran is what is stored."""
        for name in names:
            value = self.places.value(name)
            value.copy_(value.to(self.kept_dtype(name)))

    @contextmanager
    def on_demand(self, budget: int) -> Iterator[None]:
        """Fill the parameters of a module when it is about to run, and empty them when it has run.

        What is filled already stays so. Matrices of more than ``budget`` bytes (as float32) that are looked up or
        multiplied by as they are in the file are read a few rows at a time.
        """
        large = self._large(budget)
        still = {*self._filled, *large}
        stored = {id(self.places.names[n]): self.weights[self._origin[n].sources[0]] for n in large}
        handles = []
        for module_name, module in self.model.named_modules():
            own = [f"{module_name}.{n}" if module_name else n for n, _ in module.named_parameters(recurse=False)]
            names = [c for n in own if (c := self.places.canonical(n)) is not None and c not in still]
            if names:
                handles.append(module.register_forward_pre_hook(lambda *_, n=names: self.load(n)))
                handles.append(module.register_forward_hook(lambda *_, n=names: self.release(n)))
        try:
            with Rowwise(stored, budget, self.device, self._note):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _large(self, budget: int) -> set[str]:
        """Return the weights of look-up tables and linear layers, not filled, that alone exceed ``budget``."""
        found = set()
        for module_name, module in self.model.named_modules():
            name = self.places.canonical(f"{module_name}.weight")
            if isinstance(module, nn.Embedding | nn.Linear) and name is not None and name not in self._filled:
                plain = self._origin[name].converter is None
                found |= {name} if plain and 4 * module.weight.numel() > budget else set()
        return found

    def _make(self, origin: Origin) -> dict[str, Tensor]:
        made = origin.make(self.model, lambda name: self.weights[name].read())
        return {c: value for name, value in made.items() if (c := self.places.canonical(name)) is not None}

    def _check_shapes(self) -> None:
        for name, parameter in self.places.names.items():
            origin = self._origin[name]
            if origin.converter is None:
                found = self.weights[origin.sources[0]].shape
                if tuple(parameter.shape) != found:
                    raise InputError(
                        f"model {self.folder}: the weights do not fit config.json: {origin.sources[0]} has the shape "
                        f"{list(found)}, expected {list(parameter.shape)}"
                    )


def open_hollow(folder: Path, device: str = "cpu") -> HollowModel:
    """Return the model in ``folder`` without its weights; only config.json and the headers are read.

    Raises InputError for everything that is missing, truncated, foreign, quantized already, or does not fit together.
    """
    if not folder.exists():
        raise InputError(f"model {folder}: no such file or folder; give a Hugging Face model folder")
    if not (folder / "config.json").is_file():
        inside = folder / "model"
        remedy = f"a run's model is {inside}" if (inside / "config.json").is_file() else "expected a model folder"
        raise InputError(f"model {folder}: has no config.json; {remedy}")
    settings = read_json(folder / "config.json", "a JSON config")
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise InputError(f"{folder / 'config.json'}: has no model_type; expected the config.json of a model")
    done = settings.get("quantization_config")
    if done is not None:
        how = done.get("quant_method", "unknown") if isinstance(done, dict) else "unknown"
        raise InputError(f"model {folder}: is quantized already (quant_method {how}); quantize the original")
    weights = folder_weights(folder)
    model = hollow_model(folder / "config.json", settings)
    known = model is not None
    if model is None:
        model = skeleton({name: stored.shape for name, stored in weights.items()})
    return HollowModel(folder, settings, model, weights, known, device_of(device))


def device_of(name: str) -> torch.device:
    """Return the device called ``name``; InputError where there is none of that kind here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such kind of device; expected cpu or cuda") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {name}: not available here; expected cpu, or cuda where torch sees a GPU")
    return device


def hollow_model(path: Path, settings: dict[str, Any]) -> nn.Module | None:
    """Return the hollow model that ``settings`` of the config file ``path`` describe; None for an unknown model_type.

    Raises InputError where the type is known and its settings are not usable.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = settings["model_type"]
    if kind not in CONFIG_MAPPING:
        return None
    rest = {key: value for key, value in settings.items() if key not in ("model_type", "quantization_config")}
    try:
        return hollow_from_config(AutoConfig.for_model(kind, **rest))
    except Exception as error:  # each model class refuses its settings in its own way
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: transformers makes no model of model_type {kind!r} ({why})") from None
