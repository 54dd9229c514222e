"""Formats known by their values: codes by looking up, as in `formats.tabulated`. Tables first, then device code.

One 8-byte entry for the 16 leading bits of a number's sortable key holds what the common case needs, formats of at most
8 bits: the lowest key of the next slot, and the codes on either side of it. Other formats search on among all slots.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.formats.lookup import Lookup, cells, lookup, slots
from narrowcast.formats.rounding import Rounding
from narrowcast.formats.tabulated import Tabulated
from narrowcast.kernels.rounding import bits_of, round_fixed


def tables_of(fmt: Tabulated, rounding: Rounding, device: torch.device) -> tuple[Tensor, ...]:
    """Return the tables that a kernel takes; made once for a format, rounding and device."""
    key = ("kernel", rounding, device)
    if key not in fmt.tables:
        found = lookup(fmt, rounding, torch.float32, device)
        codes = slots(fmt, device).codes.int()
        if rounding.random:
            cell = cells(fmt, device)
            ends = torch.tensor([cell.lowest, cell.highest], dtype=torch.float64, device=device)
            fmt.tables[key] = (found.start, found.bound, codes, cell.near, cell.width, cell.step, cell.level, ends)
        else:
            fmt.tables[key] = (found.start, found.bound, codes) if found.doublings > 1 else (_entries(found, codes),)
    tables: tuple[Tensor, ...] = fmt.tables[key]
    return tables


def _entries(found: Lookup, codes: Tensor) -> Tensor:
    """Return int64 [65536]: the key that the next slot begins behind, below it the two codes in 16 bits each."""
    following = (found.start + 1).clamp_max(len(codes) - 1)
    bound = found.bound[found.start + 1].long() if found.doublings else torch.full_like(following, (1 << 31) - 1).long()
    return bound << 32 | codes[following].long() << 16 | codes[found.start].long()


@triton.jit
def encode_by_table(y, tables, draw, E: tl.constexpr, R: tl.constexpr):
    """Return the top-aligned codes of float32 ``y``, NaN's among them."""
    bits = bits_of(y)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    prefix = (key >> 16) + 32768
    if E.entries:
        entry = tl.load(tables[0] + prefix)
        code = entry.to(tl.int32)
        code = tl.where(key > (entry >> 32).to(tl.int32), code >> 16, code & 0xFFFF)
    else:
        slot = tl.load(tables[0] + prefix)
        for i in tl.static_range(E.doublings + 0):
            further = slot + (1 << (E.doublings - 1 - i))
            slot = tl.where(key > tl.load(tables[1] + further), further, slot)
        if R.random:
            slot = dithered_slot(y, slot, tables, draw, R)
        code = tl.load(tables[2] + slot)
    return code << (32 - E.bits)


@triton.jit
def dithered_slot(y, slot, tables, draw, R: tl.constexpr):
    """Return the slot that a random mode takes: on this side of the cell above ``slot``, or on the other."""
    near, width = tl.load(tables[3] + slot), tl.load(tables[4] + slot)
    step, level = tl.load(tables[5] + slot), tl.load(tables[6] + slot)
    x = tl.minimum(tl.maximum(y.to(tl.float64), tl.load(tables[7])), tl.load(tables[7] + 1))
    place = tl.abs(x - near) / width * 65536.0
    place = tl.where(place == place, place, 0.0)
    n = place.to(tl.int32)
    if R.sticky:
        n = n | (place > n.to(tl.float64)).to(tl.int32)
    gone = round_fixed(n + (level << 16), 16, step >> 31, draw, R) - level
    return slot - (step >> 31) + step * gone
