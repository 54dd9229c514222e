"""Quantize a model folder with one block in memory at a time.

A block is filled, quantized, written and emptied again; what it makes of the calibration goes to the next one. Beside
the block there are the hidden states of the calibration, and, while they run, the modules before and after the blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.io.hollow import HollowModel
from narrowcast.ptq.blocks import Call, Forward, find_blocks, record_around, run_around
from narrowcast.ptq.cache import LiveCache
from narrowcast.ptq.calibration import Calibration
from narrowcast.ptq.judge import Judge, Judgement
from narrowcast.ptq.part import Part, quantize_part
from narrowcast.ptq.pipeline import forward_of, members_of
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.targets import Target, find_targets


@dataclass
class State:
    """Where the calibration stands between two blocks.

    Attributes:
        rows: hidden states of each calibration batch, through the quantized blocks.
        wide, narrow: hidden states of the batches set apart, through the original and the quantized blocks.
    """

    rows: list[Tensor] = field(default_factory=list)
    wide: list[Tensor] = field(default_factory=list)
    narrow: list[Tensor] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(t.nbytes for t in (*self.rows, *self.wide, *self.narrow))

    def to(self, device: torch.device) -> "State":
        """Return the state on ``device``, in memory of its own (what a file was mapped to is aligned otherwise)."""
        return State(*([t.to(device, copy=True) for t in group] for group in (self.rows, self.wide, self.narrow)))

    def tensors(self) -> dict[str, Tensor]:
        """Return them under names, for a file."""
        return {f"{kind}.{i}": t for kind in ("rows", "wide", "narrow") for i, t in enumerate(getattr(self, kind))}

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> "State":
        """Return the state that `tensors` named."""
        counts = {kind: sum(n.startswith(f"{kind}.") for n in tensors) for kind in ("rows", "wide", "narrow")}
        return State(**{kind: [tensors[f"{kind}.{i}"] for i in range(count)] for kind, count in counts.items()})


@dataclass(frozen=True)
class Piece:
    """One finished part of the model, ready to be stored.

    Attributes:
        number: its place; the parts outside of all blocks come last.
        part: what became of its weights.
        wide: its other parameters, by name, in the dtype of the checkpoint.
        drift: relative squared error of the hidden states behind it, on what was set apart; None where nothing was.
        state: where the calibration stands behind it; None behind the last block.
    """

    number: int
    part: Part
    wide: dict[str, Tensor]
    drift: float | None
    state: State | None


#: stores a finished part
Store = Callable[[Piece], None]


@dataclass
class Streamer:
    """Takes a hollow model through its parts.

    Attributes:
        source: the model.
        recipe: what to do.
        data: the calibration; without batches nothing is run.
        activations: most bytes of hidden states that were held at once.
    """

    source: HollowModel
    recipe: PtqRecipe
    data: Calibration
    activations: int = 0

    def __post_init__(self) -> None:
        self.prefix, self.blocks = find_blocks(self.source.model)
        self.cache = LiveCache(self.source.model, self.recipe.kv) if self.recipe.kv is not None else None
        self.targets, self.kept = find_targets(self.source.model, self.recipe.keep_wide)
        self.inside = members_of(self.targets, self.prefix, len(self.blocks))
        self.forwards = [forward_of(self.source.model, b) for b in self._on_device(self.data.batches)]
        self.held = [forward_of(self.source.model, b) for b in self._on_device(self.data.held)]

    @property
    def parts(self) -> list[str]:
        """Names of the parts: the blocks, and what is outside of them in pieces no larger than a block."""
        blocks = [f"{self.prefix}.{i}" for i in range(len(self.blocks))] if self.prefix else []
        return [*blocks, *("outside the blocks" if blocks else "the whole model" for _ in self._chunks())]

    @torch.no_grad()
    def run(self, store: Store, done: int = 0, state: State | None = None) -> Judgement | None:
        """Quantize every part from number ``done`` on and hand each to ``store``.

        Args:
            store: stores a part; what it has returned from is finished.
            done: parts that are finished already.
            state: where the calibration stood behind them.

        Returns what the model lost on the data set apart, or None where there were none.
        """
        self.source.load_buffers()
        if not self.prefix:
            return self._whole(store)
        calls, wrap = self._front()
        if state is not None:
            state = state.to(self.source.device)
        else:
            held = [c[0].hidden for c in calls[len(self.forwards) :]]
            state = State([c[0].hidden for c in calls[: len(self.forwards)]], held, list(held))
        for per_batch in calls:
            per_batch[0].hidden = per_batch[0].hidden.new_empty(0)
        for number in range(done, len(self.blocks)):
            store(self._block(number, [c[number] for c in calls], state))
        return self._outside(store, state, wrap)

    def _front(self) -> tuple[list[list[Call]], bool]:
        """Return how each batch calls each block, from what stands before the blocks alone."""
        found, wrap = [], False
        with self.source.on_demand(self._budget):
            for forward in (*self.forwards, *self.held):
                calls, wrap = record_around(self.blocks, forward)
                found.append(calls)
        self.source.release(self.source.names(outside=f"{self.prefix}."))  # modules that were cut short
        return found, wrap

    def _block(self, number: int, calls: list[Call], state: State) -> Piece:
        source, block, name = self.source, self.blocks[number], f"{self.prefix}.{number}."
        names = source.names(name)
        source.load(names)
        count = len(self.forwards)
        wide = [call.run(block, h) for call, h in zip(calls[count:], state.wide, strict=True)]
        for call, hidden in zip(calls, state.rows, strict=False):
            call.hidden = hidden  # `wiring` and all statistics begin here
        runs: list[Forward] = [_runner(block, call) for call in calls[:count]]
        part = self._quantized(self.inside[number], runs, names)
        part.cache += self.cache.settle(name, runs) if self.cache is not None else []
        self._note(state, wide)
        rows = [call.run(block) for call in calls[:count]]
        narrow = [call.run(block, h) for call, h in zip(calls[count:], state.narrow, strict=True)]
        for call in calls:
            call.hidden = call.hidden.new_empty(0)
        state.rows, state.wide, state.narrow = rows, wide, narrow
        stays = self._stays(names, part)
        source.release(names)
        return Piece(number, part, stays, _drift(wide, narrow), state)

    def _note(self, state: State, more: Sequence[Tensor]) -> None:
        self.activations = max(self.activations, state.nbytes + sum(t.nbytes for t in more))

    def _quantized(self, members: list[Target], runs: Sequence[Forward], names: list[str]) -> Part:
        if not members:
            return Part()
        fresh = [replace(t, weight=self.source.model.get_parameter(t.name)) for t in members]
        part = quantize_part(self.source.model, fresh, self.recipe, runs)
        narrowed = {t.name for t in members}
        self.source.settle(n for n in names if n not in narrowed)
        return part

    def _stays(self, names: list[str], part: Part) -> dict[str, Tensor]:
        narrowed = {layer.spec.name for layer in part.layers}
        return {name: self.source.wide(name) for name in names if name not in narrowed}

    # --- what is outside of the blocks ---

    def _outside(self, store: Store, state: State, wrap: bool) -> Judgement | None:
        """Judge, and quantize and store what stands before and after the blocks."""
        placed = {t.name for members in self.inside for t in members}
        members = [t for t in self.targets if t.name not in placed]
        pinned = [t.name for t in members]
        judge = Judge()
        with self._running(pinned):
            tails = [partial(run_around, self.blocks, f, wrap=wrap) for f in (*self.forwards, *self.held)]
            held = tails[len(self.forwards) :]
            if not members:
                for tokens, tail, wide, narrow in zip(self.data.held, held, state.wide, state.narrow, strict=True):
                    judge.add(tokens, tail(last=wide), tail(last=narrow))
            before = [tail(last=h) for tail, h in zip(held, state.wide, strict=True)] if members else []
            runs = [partial(tail, last=h) for tail, h in zip(tails, state.rows, strict=False)]
            part = self._quantized(members, runs, [])
            if members:
                for row in zip(self.data.held, before, held, state.narrow, strict=True):
                    judge.add(row[0], row[1], row[2](last=row[3]))
        for number, names in enumerate(self._chunks()):
            stays = self._stays(names, part)
            store(Piece(len(self.blocks) + number, part if number == 0 else Part(), stays, None, None))
        return judge.result

    @contextmanager
    def _running(self, pinned: list[str]) -> Iterator[None]:
        self.source.load(pinned)
        with ExitStack() as stack:
            if self.forwards or self.held:
                stack.enter_context(self.source.on_demand(self._budget))
            yield
        self.source.release(self.source.names(outside=f"{self.prefix}."))

    @property
    def _budget(self) -> int:
        """Float32 bytes of the first block."""
        names = self.source.names(f"{self.prefix}.0.")
        return 4 * sum(self.source.places.names[n].numel() for n in names)

    def _chunks(self) -> list[list[str]]:
        """Return the parameters outside of the blocks in pieces that take no more memory than the first block."""
        if not self.prefix:
            return [self.source.names()]
        largest = self._budget // 4
        chunks: list[list[str]] = [[]]
        size = 0
        for name in self.source.names(outside=f"{self.prefix}."):
            count = self.source.places.names[name].numel()
            if chunks[-1] and size + count > largest:
                chunks.append([])
                size = 0
            chunks[-1].append(name)
            size += count
        return chunks

    def _whole(self, store: Store) -> Judgement | None:
        """The model is one block: everything is in memory."""
        names, judge = self.source.names(), Judge()
        self.source.load(names)
        before = [forward() for forward in self.held]
        part = self._quantized(self.targets, self.forwards, names)
        part.cache += self.cache.settle("", self.forwards) if self.cache is not None else []
        for tokens, wide, forward in zip(self.data.held, before, self.held, strict=True):
            judge.add(tokens, wide, forward())
        store(Piece(0, part, self._stays(names, part), None, None))
        self.source.release(names)
        return judge.result

    def _on_device(self, batches: Sequence[Any]) -> list[Any]:
        device = self.source.device
        return [
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in b.items()} if isinstance(b, dict)
            else b.to(device)
            for b in batches
        ]  # fmt: skip


def _runner(block: Any, call: Call) -> Forward:
    return lambda: call.run(block)


def _drift(wide: Sequence[Tensor], narrow: Sequence[Tensor]) -> float | None:
    """Return the relative squared error of hidden states."""
    if not wide:
        return None
    error = sum(float((n.double() - w.double()).square().sum()) for w, n in zip(wide, narrow, strict=True))
    return error / max(sum(float(w.double().square().sum()) for w in wide), 1e-300)
