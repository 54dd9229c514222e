"""A `torch.optim.Optimizer` whose states are stored narrow: computed in float32, kept as a `Storage` says.

A step loads weight and moments, applies the rule in float32, and stores them again. The parameter is what the model
computes with: the stored weight's values in the parameter's own dtype. Where that dtype holds them exactly the
parameter itself is the master weight; else a master is kept beside it (a float16 one under a bfloat16 parameter).

State is plain tensors: ``step`` (int64) and each storage's parts, ``m.codes``, ``v.scales``, ... Random bits are a
function of (seed, step, parameter, element), so a resumed run draws what it would have drawn.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.backend import choose_optimizer
from narrowcast.errors import InputError
from narrowcast.formats import Stream
from narrowcast.optim.catalogue import Method, method
from narrowcast.optim.rules import Numbers, check_group
from narrowcast.storage import Storage, Stored

Params = Iterable[Tensor] | Iterable[dict[str, Any]]
WIDE_STATES = "fp32-adam"
_SLOTS = 8  # storages that one parameter may have: its streams are numbered from index * 8 on
_KEY = 0x6F7074 << 40  # draws of another seed than the layers', whose streams use all 32 bits of their numbers


class NarrowOptimizer(torch.optim.Optimizer):
    """See `optimizer`, which makes it. A group may name its own ``states`` beside lr, betas, eps and weight_decay."""

    def __init__(
        self,
        params: Params,
        states: str | Method,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        self.seed, self.backend = seed, backend
        self._batches: dict[int, list[Batch]] = {}  # of each group
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "states": str(method(states))}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of."""
        return {**super().__getstate__(), "seed": self.seed, "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy."""
        super().__setstate__(state)
        self._batches = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; InputError where its numbers, its states or its tensors make no sense."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_group(group)
        method(group["states"])
        for p in group["params"]:
            if not p.is_floating_point():
                raise InputError(f"optimizer: a parameter of dtype {p.dtype}; expected floating point")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update of every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for number, group in enumerate(self.param_groups):
            ready = [(first + i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
            chosen = method(group["states"])
            batches = self._batches.get(number, [])
            if not self._fit(batches, chosen, ready):
                batches = self._batches[number] = self._prepared(chosen, ready)
            for batch in batches:
                batch.run(group)
            first += len(group["params"])
        return loss

    def _fit(self, batches: "list[Batch]", chosen: Method, ready: list[tuple[int, Tensor]]) -> bool:
        """Return whether ``batches`` are of these very parameters, states and method."""
        works = [work for batch in batches for work in batch.works]
        if len(works) != len(ready) or any(batch.chosen != chosen for batch in batches):
            return False
        state = self.state
        if len(batches) == 1:  # in order: the quick way, for every step takes it
            return all(
                work.p is p and work.state is state[p] and work.place == p.data_ptr()
                for work, (_, p) in zip(works, ready, strict=True)
            )
        known = {id(work.p): work for work in works}
        found = ((known.get(id(p)), p) for _, p in ready)
        return all(work is not None and work.state is state[p] and work.place == p.data_ptr() for work, p in found)

    def _prepared(self, chosen: Method, ready: list[tuple[int, Tensor]]) -> "list[Batch]":
        sorted_: dict[tuple[object, ...], list[Work]] = {}
        for number, p in ready:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise InputError("optimizer: a sparse gradient; expected a dense one (sparse=False in the embedding)")
            state = self.state[p]
            if not state:
                state.update(new_state(p, chosen))
            key = (p.device, p.dtype, p.grad.dtype, int(state["step"]))
            sorted_.setdefault(key, []).append(Work(p, state, number * _SLOTS))
        return [Batch(chosen, works, self.seed ^ _KEY, self.backend) for works in sorted_.values()]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, bit for bit; InputError where it was saved by another optimizer."""
        if any("states" not in group for group in state_dict["param_groups"]):
            raise InputError("optimizer: its groups name no states; the state was saved by another optimizer")
        super().load_state_dict(state_dict)
        self._batches = {}
        saved = state_dict["state"]
        for group, of_saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            chosen = method(group["states"])
            for p, key in zip(group["params"], of_saved["params"], strict=True):
                if key in saved:  # torch has cast codes to the parameter's dtype: take them as they were saved
                    kept = {k: t.to("cpu" if k == "step" else p.device, copy=True) for k, t in saved[key].items()}
                    check_state(kept, p, chosen)
                    self.state[p] = kept

    @property
    def nbytes(self) -> int:
        """Bytes of master weights and moments of all parameters, scales counted.

        A weight that the parameter itself holds counts, at the width of its storage: 12 a parameter for float32.
        """
        total = 0.0
        for group in self.param_groups:
            chosen = method(group["states"])
            total += sum(p.numel() * chosen.bytes_per_parameter(p.numel()) for p in group["params"])
        return round(total)


class Work:
    """One parameter and its state."""

    def __init__(self, p: Tensor, state: dict[str, Tensor], first_stream: int) -> None:
        self.p, self.state, self.place = p, state, p.data_ptr()
        self.first_stream = first_stream

    def stream(self, number: int, seed: int = 0, step: int = 0) -> Stream:
        """Return the random bits of the storage with this number at a step."""
        return Stream(seed, self.first_stream + number, step)

    def stored(self, name: str, storage: Storage) -> Stored:
        """Return the parts of a storage, among them those that the parameter itself carries."""
        found = {key.partition(".")[2]: t for key, t in self.state.items() if key.startswith(f"{name}.")}
        if name == "weight":
            found.update(dict.fromkeys(storage.carried(self.p.dtype), self.p.flatten()))
        return found

    def keep(self, name: str, stored: Stored) -> None:
        """Write a storage's parts in place; those that the parameter carries are its caller's."""
        for part, t in stored.items():
            if (key := f"{name}.{part}") in self.state:
                self.state[key].copy_(t)


class Batch:
    """Parameters that take a step together: of one device, dtype, gradient dtype and step number."""

    def __init__(self, chosen: Method, works: list[Work], seed: int, backend: str) -> None:
        self.chosen, self.works, self.seed = chosen, works, seed
        self.steps = [work.state["step"] for work in works]
        self.step = int(self.steps[0])
        p = works[0].p
        self.plan = None
        if choose_optimizer(backend, chosen.rule.name, chosen.storages, p, p.grad).backend == "native":
            from narrowcast.kernels.optimizer import Plan

            self.plan = Plan(chosen.storages, works)

    def run(self, group: dict[str, Any]) -> None:
        """Make one step under the numbers of a group."""
        torch._foreach_add_(self.steps, 1)
        self.step += 1
        numbers = self.chosen.rule.numbers(group, self.step)
        if self.plan is not None:
            self.plan.run(numbers, self.step, self.seed)
            return
        for work in self.works:
            plain_step(self.chosen, work, numbers, self.seed, self.step)


def new_state(p: Tensor, chosen: Method) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step."""
    state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.int64)}
    for name, storage in chosen.storages.items():
        if name == "weight":
            parts = storage.store(p.detach().flatten().float(), Stream())
            parts = {part: t for part, t in parts.items() if part not in storage.carried(p.dtype)}
        else:
            parts = storage.zeros(p.numel(), p.device)
        state.update({f"{name}.{part}": t for part, t in parts.items()})
    return state


def check_state(state: dict[str, Tensor], p: Tensor, chosen: Method) -> None:
    """Raise InputError where ``state`` is not what ``chosen`` keeps for ``p``."""
    wanted = new_state(p, chosen)
    if wrong := set(state) ^ set(wanted):
        raise InputError(f"optimizer {chosen}: its state has no part {min(wrong)!r}; it was saved by another optimizer")
    for key, like in wanted.items():
        if state[key].shape != like.shape or state[key].dtype != like.dtype:
            raise InputError(
                f"optimizer {chosen}: {key} is {state[key].dtype} {tuple(state[key].shape)}, expected {like.dtype} "
                f"{tuple(like.shape)}; it was saved by another optimizer or for another model"
            )


def plain_step(chosen: Method, work: Work, numbers: Numbers, seed: int, step: int) -> None:
    """Update one parameter in place: the definition, which kernels follow bit for bit."""
    p, count = work.p, work.p.numel()
    storages = chosen.storages
    loaded = {name: storage.load(work.stored(name, storage), count) for name, storage in storages.items()}
    weight = loaded.pop("weight")
    assert p.grad is not None
    weight, moments = chosen.rule.update(weight, p.grad.flatten().float(), tuple(loaded.values()), numbers)
    for number, (name, x) in enumerate(zip(storages, (weight, *moments), strict=True)):
        storage = storages[name]
        stored = storage.store(x, work.stream(number, seed, step))
        work.keep(name, stored)
        if name == "weight":
            carried = storage.carried(p.dtype)
            values = stored[carried[0]] if carried else storage.load(stored, count)
            p.copy_(values.view(p.shape))


def state_bytes(model: nn.Module, states: str | Method | None) -> float:
    """Return the bytes of master weights and moments of ``model``, its matrices' as ``states`` says (see `optimizer`).

    None stands for float32 throughout: 12 a parameter.
    """
    wide = method(WIDE_STATES)
    narrow = wide if states is None else method(states)
    found = ((p.numel(), narrow if p.dim() >= 2 else wide) for p in model.parameters())
    return sum(count * chosen.bytes_per_parameter(count) for count, chosen in found)


def optimizer(
    target: nn.Module | Params,
    states: str | Method,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    seed: int = 0,
    backend: str = "auto",
) -> NarrowOptimizer:
    """Return AdamW whose master weight and moments are kept narrow; a real `torch.optim.Optimizer`.

    Args:
        target: a module: its matrices are kept as ``states`` says and decayed, its vectors (norms, biases) stay
            float32 and are not; or parameters or groups, all as ``states`` says unless a group names its own.
        states: a name of `optimizers`, or ``"weight=STORAGE m=STORAGE v=STORAGE"``.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        seed: key of the random bits.
        backend: ``emulate``, the definition; ``native``, one fused pass with the same bits; ``auto``.

    >>> opt = optimizer(torch.nn.Linear(64, 64), "fp8-adam", lr=3e-4)
    """
    if isinstance(target, nn.Module):
        parameters = [p for p in target.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in parameters if (p.dim() >= 2) is wide] for wide in (True, False))
        groups: list[dict[str, Any]] = [{"params": matrices}]
        groups.append({"params": vectors, "weight_decay": 0.0, "states": WIDE_STATES})
        target = [group for group in groups if group["params"]]
        if not target:
            raise InputError("optimizer: the module has no parameters to train")
    return NarrowOptimizer(target, states, lr, betas, eps, weight_decay, seed, backend)
