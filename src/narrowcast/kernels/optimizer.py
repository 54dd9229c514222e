"""One AdamW step of many tensors in one launch: the kernel twin of `optim.narrow.plain_step`.

A table of addresses names each tensor's parameter, gradient and storages, a map says which block of which tensor a
program has. A pass reads gradient, weight and moments once and writes weight, moments and parameter once. Where one
scale serves a whole tensor, its new maximum must be known first: a pass before it computes the same step and keeps
nothing but maxima.

Bytes moved per parameter, float16 master in blocks, 8-bit moments, bfloat16 gradient and parameter: 2 + 4 read, 4 + 2
written. Operations follow `optim.rules` in its order, without fused multiply-add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.formats import Stream
from narrowcast.kernels.elements import as_int32
from narrowcast.kernels.kept import (
    draws_for,
    largest_bits,
    load_kept,
    load_scale,
    narrowed,
    pointer,
    store_kept,
    widened,
)
from narrowcast.kernels.kept_facts import GROUP, kept_facts
from narrowcast.kernels.rounding import float_of
from narrowcast.kernels.scale import scale_of
from narrowcast.storage import Storage

#: columns of the table of addresses: elements, stream, parameter, nothing, then three parts for each storage
_COLUMNS = 16
_PARTS = {"codes": 0, "high": 0, "scales": 1, "low": 1, "largest": 1, "powers": 2}
_ALIGNMENT = 16
_KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class StepLayout:
    """The shape of one program, and what is known of the tensors when it is compiled.

    Attributes:
        groups: groups of 128 elements of one program.
        aligned: whether all addresses, and counts of elements, are multiples of 16.
        converts: whether the processor has instructions between float32 and 8-bit floats (sm_89 on).
        parameter, gradient: their types.
    """

    groups: int
    aligned: bool
    converts: bool
    parameter: str
    gradient: str


@dataclass(frozen=True)
class Knobs:
    """Launch knobs: groups of 128 elements of one program, and its warps."""

    groups: int
    warps: int


class Item(Protocol):
    """What a step needs of one parameter; `optim.narrow.Work`."""

    p: Tensor
    state: dict[str, Tensor]

    def stream(self, number: int) -> Stream:
        """Return the random bits of a storage."""


@triton.jit
def addresses_of(row, FIRST: tl.constexpr, K: tl.constexpr):
    """Return the addresses of a storage's three parts; the parameter's for codes that it carries."""
    first = tl.load(row + 2) if K.carried else tl.load(row + FIRST)
    return first, tl.load(row + FIRST + 1), tl.load(row + FIRST + 2)


@triton.jit
def adamw(weight, gradient, m, v, head):
    """Return (weight, m, v) after a step: `optim.rules`."""
    b1, rest1 = float_of(tl.load(head).to(tl.int32)), float_of(tl.load(head + 1).to(tl.int32))
    b2, rest2 = float_of(tl.load(head + 2).to(tl.int32)), float_of(tl.load(head + 3).to(tl.int32))
    root, eps = float_of(tl.load(head + 4).to(tl.int32)), float_of(tl.load(head + 5).to(tl.int32))
    size, decay = float_of(tl.load(head + 6).to(tl.int32)), float_of(tl.load(head + 7).to(tl.int32))
    m = m * b1 + gradient * rest1
    v = v * b2 + (gradient * gradient) * rest2
    denominator = tl.sqrt_rn(v) * root + eps
    update = tl.div_rn(m, denominator) * size
    return weight * decay - update, m, v


@triton.jit
def old_scale(address, K: tl.constexpr, kept, MAXIMA: tl.constexpr):
    """Return the scale of a whole tensor as it was before this step; ``kept``: where the first pass puts it."""
    S: tl.constexpr = K.scale
    scale = 1.0
    if K.by_tensor:
        if MAXIMA:
            scale = load_scale(address, 0, S)
        else:
            scale = tl.load(kept)
    return scale


@triton.jit
def new_maximum(x, inside, ptr, old_ptr, scale, block, K: tl.constexpr):
    """Join the largest magnitude of this block into the tensor's, and keep its old scale for the second pass."""
    if K.by_tensor:
        top = tl.max(largest_bits(tl.where(inside, x, 0.0)))
        tl.atomic_max(ptr, top, sem="relaxed")
        if block == 0:
            tl.store(old_ptr, scale)


@triton.jit
def new_scale(address, ptr, block, K: tl.constexpr):
    """Return the bits of the tensor's new maximum; the first block writes the scale that follows from it."""
    S: tl.constexpr = K.scale
    whole = 0
    if K.by_tensor:
        whole = tl.load(ptr)
        if block == 0:
            stored, _into, _poisoned = scale_of(whole, 0, S, None)
            if S.kind == "power":
                tl.store(pointer(address, "uint8", False), stored.to(tl.uint8))
            else:
                tl.store(pointer(address, "float32", False), stored)
    return whole


@triton.jit
def draw_of(first, row, NUMBER: tl.constexpr, step, k0, k1, K: tl.constexpr, L: tl.constexpr):
    """Return the random bits of a storage, where it draws any."""
    draw = 0
    if K.random:
        draw = draws_for(first, tl.load(row + 1) + NUMBER, step, k0, k1, L.groups)
    return draw


@triton.jit(do_not_specialize=("step", "k0", "k1"))
def step_kernel(
    head, table, map_ptr, maxima_ptr, old_ptr, step, k0, k1,
    W: tl.constexpr, M: tl.constexpr, V: tl.constexpr, L: tl.constexpr, MAXIMA: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor; MAXIMA: the pass that keeps nothing but maxima of whole tensors.

    head: numbers of the step, then the gradients' addresses; table: what stays from step to step.
    W, M, V: `KeptFacts` of weight and moments; L: `StepLayout`.
    """
    tensor = tl.load(map_ptr + 2 * tl.program_id(0))
    block = tl.load(map_ptr + 2 * tl.program_id(0) + 1)
    row = table + tensor * 16
    count = tl.load(row)
    if L.aligned:
        count = tl.multiple_of(count, 16)  # so that a mask holds for 16 neighbours alike, and they are one access
    first = block.to(tl.int64) * (L.groups * 128)
    lane = tl.arange(0, L.groups)[:, None] * 128 + tl.arange(0, 128)[None, :]
    at = first + lane
    group = block.to(tl.int64) * L.groups + tl.arange(0, L.groups)
    groups = (count + 127) // 128
    inside, padded = at < count, at < groups * 128
    aw, am, av = addresses_of(row, 4, W), addresses_of(row, 7, M), addresses_of(row, 10, V)
    maxima, old = maxima_ptr + 3 * tensor, old_ptr + 3 * tensor
    sw, sm, sv = (
        old_scale(aw[1], W, old, MAXIMA),
        old_scale(am[1], M, old + 1, MAXIMA),
        old_scale(av[1], V, old + 2, MAXIMA),
    )
    from_kind: tl.constexpr = L.gradient
    kind: tl.constexpr = L.parameter
    gradient = widened(
        tl.load(pointer(tl.load(head + 8 + tensor), from_kind, L.aligned) + at, mask=inside, other=0), from_kind
    )
    weight = load_kept(aw, at, tl.minimum(group, groups - 1), inside, sw, W, kind, L)
    m = load_kept(am, at, tl.minimum(group, groups - 1), inside, sm, M, kind, L)
    v = load_kept(av, at, tl.minimum(group, groups - 1), inside, sv, V, kind, L)
    weight, m, v = adamw(weight, gradient, m, v, head)
    if MAXIMA:
        new_maximum(weight, inside, maxima, old, sw, block, W)
        new_maximum(m, inside, maxima + 1, old + 1, sm, block, M)
        new_maximum(v, inside, maxima + 2, old + 2, sv, block, V)
    else:
        weight, m, v = tl.where(inside, weight, 0.0), tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
        tw, tm, tv = (
            new_scale(aw[1], maxima, block, W),
            new_scale(am[1], maxima + 1, block, M),
            new_scale(av[1], maxima + 2, block, V),
        )
        store_kept(m, am, at, group, inside, padded, groups, tm, draw_of(first, row, 1, step, k0, k1, M, L), M, L)
        store_kept(v, av, at, group, inside, padded, groups, tv, draw_of(first, row, 2, step, k0, k1, V, L), V, L)
        draw = draw_of(first, row, 0, step, k0, k1, W, L)
        value = store_kept(weight, aw, at, group, inside, padded, groups, tw, draw, W, L)
        parameter = pointer(tl.load(row + 2), kind, L.aligned)
        tl.store(parameter + at, narrowed(value, kind), mask=inside)


@lru_cache(maxsize=64)
def _map(counts: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """Return int32 ``[blocks, 2]``: tensor and block of each program."""
    pieces = []
    for tensor, count in enumerate(counts):
        blocks = torch.arange(-(-count // size), dtype=torch.int32)
        pieces.append(torch.stack([torch.full_like(blocks, tensor), blocks], dim=1))
    return torch.cat(pieces).to(device)


class Plan:
    """The steps of some tensors, prepared: all of one device, dtype and gradient dtype.

    Parameters and states stay where they are from step to step, gradients do not: a step uploads its numbers and the
    gradients' addresses. Preparing every step anew took 36 us a tensor.
    """

    def __init__(self, storages: Mapping[str, Storage], items: Sequence[Item], knobs: Knobs | None = None) -> None:
        self.parts = [
            _Part(storages, few, aligned, knobs)
            for aligned in (True, False)  # one tensor of odd size or place would slow all the others
            if (few := [item for item in items if item.p.numel() and _aligned(item) is aligned])
        ]

    def run(self, numbers: Sequence[float], step: int, seed: int) -> None:
        """Make step number ``step`` with the eight constants of `optim.rules.ADAMW`; update everything in place."""
        bits = torch.tensor(numbers, dtype=torch.float32).view(torch.int32).tolist()
        for part in self.parts:
            part.run(bits, step, seed)


def _aligned(item: Item) -> bool:
    """Whether size and addresses are multiples of 16; a parameter that is not contiguous is copied, and then is."""
    places = [t.data_ptr() for t in (item.p, *item.state.values()) if t.is_contiguous() and t.device == item.p.device]
    return not any(number % _ALIGNMENT for number in (item.p.numel(), *places))


class _Part:
    """The tensors of a plan that one launch serves."""

    def __init__(
        self, storages: Mapping[str, Storage], items: Sequence[Item], aligned: bool, knobs: Knobs | None
    ) -> None:
        first = items[0].p
        assert first.grad is not None
        self.items, self.device = items, first.device
        self.facts = [kept_facts(s, first.dtype if i == 0 else None) for i, s in enumerate(storages.values())]
        self.knobs = knobs or (Knobs(16, 8) if self.by_tensor else Knobs(8, 4))
        types = _KINDS[first.dtype], _KINDS[first.grad.dtype]
        self.layout = StepLayout(self.knobs.groups, aligned, _converts(self.device), *types)
        self.parameters = [item.p.detach().contiguous() for item in items]
        rows = [_row(item, p, list(storages)) for item, p in zip(items, self.parameters, strict=True)]
        self.table = torch.tensor(rows, dtype=torch.int64).to(self.device)
        self.blocks = _map(tuple(p.numel() for p in self.parameters), self.layout.groups * GROUP, self.device)
        self.strided = [
            (item.p, p) for item, p in zip(items, self.parameters, strict=True) if not item.p.is_contiguous()
        ]

    @property
    def by_tensor(self) -> bool:
        """Whether any scale serves a whole tensor, so that its maximum is needed first."""
        return any(fact.by_tensor for fact in self.facts)

    def run(self, numbers: list[int], step: int, seed: int) -> None:
        gradients = [self._readable(item.p.grad) for item in self.items]
        flat = [*numbers, *(g.data_ptr() for g in gradients)]
        pinned = self.device.type == "cuda"
        head = torch.tensor(flat, dtype=torch.int64, pin_memory=pinned).to(self.device, non_blocking=True)
        for p, copy in self.strided:
            copy.copy_(p)
        self._launch(head, (as_int32(step), as_int32(seed), as_int32(seed >> 32)))
        for p, copy in self.strided:
            p.copy_(copy)

    def _readable(self, gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        gradient = gradient.contiguous()
        return gradient.clone() if self.layout.aligned and gradient.data_ptr() % _ALIGNMENT else gradient

    def _launch(self, head: Tensor, bits: tuple[int, int, int]) -> None:
        maxima = old = head
        if self.by_tensor:
            maxima = torch.zeros(len(self.items), 3, dtype=torch.int32, device=self.device)
            old = torch.empty(len(self.items), 3, device=self.device)
        weight, m, v = self.facts
        with torch.cuda.device_of(head):
            for only_maxima in (True, False) if self.by_tensor else (False,):
                step_kernel[(len(self.blocks),)](
                    head, self.table, self.blocks, maxima, old, *bits, W=weight, M=m, V=v, L=self.layout,
                    MAXIMA=only_maxima, num_warps=self.knobs.warps, enable_fp_fusion=False,
                )  # fmt: skip


def _converts(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _row(item: Item, p: Tensor, names: Sequence[str]) -> list[int]:
    row = [p.numel(), item.stream(0).tensor, p.data_ptr()] + [0] * (_COLUMNS - 3)
    for number, name in enumerate(names):
        for part, place in _PARTS.items():
            if (t := item.state.get(f"{name}.{part}")) is not None:
                row[4 + 3 * number + place] = t.data_ptr()
    return row
