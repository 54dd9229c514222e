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
from narrowcast.kernels.kept_facts import GROUP, KeptFacts, kept_facts
from narrowcast.kernels.rounding import float_of
from narrowcast.kernels.scale import scale_of
from narrowcast.storage import Storage

#: columns of the table of addresses: elements, stream, parameter, gradient, then three parts for each storage
_COLUMNS = 16
_HEAD = 8  # numbers of the step, before the table
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


class Item(Protocol):
    """What a step needs of one parameter; `optim.narrow.Work`."""

    p: Tensor
    state: dict[str, Tensor]
    step: int
    seed: int

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
    head, map_ptr, maxima_ptr, old_ptr, step, k0, k1,
    W: tl.constexpr, M: tl.constexpr, V: tl.constexpr, L: tl.constexpr, MAXIMA: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor; MAXIMA: the pass that keeps nothing but maxima of whole tensors.

    W, M, V: `KeptFacts` of weight and moments; L: `StepLayout`.
    """
    tensor = tl.load(map_ptr + 2 * tl.program_id(0))
    block = tl.load(map_ptr + 2 * tl.program_id(0) + 1)
    row = head + 8 + tensor * 16
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
    gradient = widened(tl.load(pointer(tl.load(row + 3), from_kind, L.aligned) + at, mask=inside, other=0), from_kind)
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


def _float_bits(numbers: Sequence[float]) -> list[int]:
    return torch.tensor(numbers, dtype=torch.float32).view(torch.int32).tolist()


def _row(item: Item, p: Tensor, gradient: Tensor, names: Sequence[str]) -> list[int]:
    row = [p.numel(), item.stream(0).tensor, p.data_ptr(), gradient.data_ptr()] + [0] * (_COLUMNS - 4)
    for number, name in enumerate(names):
        for part, place in _PARTS.items():
            if (t := item.state.get(f"{name}.{part}")) is not None:
                row[4 + 3 * number + place] = t.data_ptr()
    return row


def step(
    storages: Mapping[str, Storage], items: Sequence[Item], numbers: Sequence[float], groups: int = 16, warps: int = 4
) -> None:
    """Update parameters in place, all of one dtype, device, gradient dtype and step number.

    Args:
        storages: of weight and moments, the weight's first; `kept_facts.reason` has found nothing against them.
        items: the parameters, with gradients.
        numbers: the eight constants of `optim.rules.ADAMW`.
        groups, warps: launch knobs: groups of 128 elements of one program, and its warps.
    """
    some = [item for item in items if item.p.numel()]
    for aligned in (True, False):  # one tensor of odd size or place would slow all the others
        if few := [item for item in some if _aligned(item) is aligned]:
            _step(
                storages, few, numbers, StepLayout(groups, aligned, _converts(few[0].p.device), *_types(few[0])), warps
            )


def _aligned(item: Item) -> bool:
    """Whether size and addresses are multiples of 16; what is not contiguous is copied, and then it is."""
    places = [t.data_ptr() for t in (item.p, item.p.grad, *item.state.values()) if t is not None and t.is_contiguous()]
    return not any(number % _ALIGNMENT for number in (item.p.numel(), *places))


def _converts(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _types(item: Item) -> tuple[str, str]:
    assert item.p.grad is not None
    return _KINDS[item.p.dtype], _KINDS[item.p.grad.dtype]


def _step(
    storages: Mapping[str, Storage], items: Sequence[Item], numbers: Sequence[float], layout: StepLayout, warps: int
) -> None:
    device = items[0].p.device
    parameters = [item.p.contiguous() for item in items]
    gradients = [item.p.grad.contiguous() for item in items]  # type: ignore[union-attr]
    rows = [_row(item, p, g, list(storages)) for item, p, g in zip(items, parameters, gradients, strict=True)]
    flat = [*_float_bits(numbers), *(number for row in rows for number in row)]
    head = torch.tensor(flat, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    facts = [kept_facts(s, parameters[0].dtype if i == 0 else None) for i, s in enumerate(storages.values())]
    _launch(head, tuple(p.numel() for p in parameters), facts, layout, items[0], warps)
    for item, p in zip(items, parameters, strict=True):
        if p is not item.p:
            item.p.copy_(p)


def _launch(
    head: Tensor, counts: tuple[int, ...], facts: Sequence[KeptFacts], layout: StepLayout, item: Item, warps: int
) -> None:
    device, seed = head.device, item.seed
    blocks = _map(counts, layout.groups * GROUP, device)
    maxima = torch.zeros(len(counts), 3, dtype=torch.int32, device=device)
    old = torch.empty(len(counts), 3, device=device)
    constants = {
        "W": facts[0],
        "M": facts[1],
        "V": facts[2],
        "L": layout,
        "num_warps": warps,
        "enable_fp_fusion": False,
    }
    bits = (as_int32(item.step), as_int32(seed), as_int32(seed >> 32))
    passes = (True, False) if any(fact.by_tensor for fact in facts) else (False,)
    with torch.cuda.device_of(head):
        for only_maxima in passes:
            step_kernel[(len(blocks),)](head, blocks, maxima, old, *bits, MAXIMA=only_maxima, **constants)
