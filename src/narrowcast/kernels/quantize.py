"""One pass that reads a tensor once and writes its codes and scales once: the kernel twin of `Cast.quantize`.

Device code, then the launcher; `kernels.launch` has the launch knobs. The same kernel serves every cast: format, scale
rule, rounding and transform enter as constant facts, and what a cast does not need is not compiled in.

Bytes moved: the source, bits/8 per element, and the scales. Maxima of whole tensors (and of rows longer than
`MAX_TILE`) come from `kernels.amax`, which reads the source once more.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.formats.packing import packed_size
from narrowcast.formats.tabulated import Tabulated
from narrowcast.kernels.elements import as_int32, element_of
from narrowcast.kernels.encode import encode, grid_of
from narrowcast.kernels.facts import rotation_of, rounding_of, scale_facts, scale_format, way_of
from narrowcast.kernels.launch import Knobs, Matrix, items_of, knobs, layout
from narrowcast.kernels.pack import packed, packed_halves
from narrowcast.kernels.rounding import bits_of, eight_draws, float_of, one_draw
from narrowcast.kernels.scale import merged, scale_of, tensor_scale
from narrowcast.kernels.table import tables_of
from narrowcast.kernels.tile import again, largest, load_group, over_tile, place, store_bytes, store_words, values_of
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, PowerOfTwo, TwoLevel
from narrowcast.transforms import Hadamard


@triton.jit
def draws_of(element, J: tl.constexpr, tensor, step, k0, k1, R: tl.constexpr, L: tl.constexpr):
    """Return the draws of elements 8 J to 8 J + 7 of each group that starts at ``element`` [N]."""
    if not R.random:
        nothing = (element * 0).to(tl.int32)
        draws = (nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    elif L.aligned:
        draws = eight_draws((element >> 3) + J, tensor, step, k0, k1)
    else:
        draws = ()
        for i in tl.static_range(8):
            draws = draws + (one_draw(element + (8 * J + i), tensor, step, k0, k1),)
    return draws


@triton.jit
def scales_of(values, places, pointers, tables, tiles_per_row, E: tl.constexpr, S: tl.constexpr, F: tl.constexpr,
              H: tl.constexpr, W: tl.constexpr, L: tl.constexpr):  # fmt: skip
    """Store the scales of a program's tiles; return (factors into the format, grids, poisoned or not), Q of each."""
    scales_ptr, tensor_ptr, amax_ptr, whole_ptr = pointers
    kind: tl.constexpr = scales_ptr.dtype.element_ty
    whole = 0
    if S.kind == "two-level":
        whole = tl.load(whole_ptr)
        if tl.program_id(0) + tl.program_id(1) == 0:
            tl.store(tensor_ptr, tensor_scale(whole, S))
    intos, grids, poisons = (), (), ()
    per_group: tl.constexpr = L.per_group
    for q in tl.static_range(per_group):
        if L.given == "none":
            amax = over_tile(largest(values, q * L.cols, L.cols), L)
            if W.merged:
                amax = bits_of(float_of(amax) * H.factor)
            stored, into, poisoned = scale_of(amax, whole, S, F)
            store_scale(scales_ptr, stored.to(kind), places, q, tiles_per_row, L)
        else:
            row = tl.program_id(0) if L.given == "row" else 0
            stored, into, poisoned = scale_of(tl.load(amax_ptr + row), whole, S, F)
            if (tl.program_id(1) == 0) & (tl.program_id(0) == row):
                tl.store(scales_ptr + row, stored.to(kind))
        if W.merged:
            into, grid = merged(stored, H.factor, E)
        elif E.family == "float":
            grid = grid_of(L.groups + 0, E)
        elif E.family == "table":
            grid = tables
        else:
            grid = ()
        intos, grids, poisons = intos + (into,), grids + (grid,), poisons + (poisoned,)
    return intos, grids, poisons


@triton.jit
def store_scale(scales_ptr, stored, places, Q: tl.constexpr, tiles_per_row, L: tl.constexpr):
    """Store the scale of the Q-th tile of each group, by the first group of the tile."""
    tile, leader, inside = places
    if L.mask and L.per_group > 1:
        tl.store(scales_ptr + tile + Q, stored, mask=inside & leader & (tile % tiles_per_row + Q < tiles_per_row))
    elif L.mask:
        tl.store(scales_ptr + tile + Q, stored, mask=inside & leader)
    elif L.inside > 1:
        tl.store(scales_ptr + tile + Q, stored, mask=leader)
    else:
        tl.store(scales_ptr + tile + Q, stored)


@triton.jit
def words_of(values, scaling, element, counter, E: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
             L: tl.constexpr):  # fmt: skip
    """Return the words of codes of each group: scale, round, encode, pack."""
    intos, grids, poisons = scaling
    tensor, step, k0, k1 = counter
    ys, codes = (), ()
    chunks: tl.constexpr = L.group // 8
    for j in tl.static_range(chunks):
        draws = draws_of(element, j, tensor, step, k0, k1, R, L)
        for i in tl.static_range(8):
            y = values[8 * j + i]
            if S.kind != "one":
                y = y * intos[(8 * j + i) // L.cols]
            code = encode(y, grids[(8 * j + i) // L.cols], draws[i], E, R, W, S.kind == "one")
            if S.kind != "one" and L.cols * E.bits % 32 != 0:
                code = tl.where(poisons[(8 * j + i) // L.cols], E.positive_nan, code)
            ys, codes = ys + (y,), codes + (code,)
    words = packed_halves(ys, codes, L.group, E, W) if W.halves else packed(codes, E.bits, L.group)
    if S.kind != "one" and L.cols * E.bits % 32 == 0:
        kept = ()
        count: tl.constexpr = len(words)
        for w in tl.static_range(count):
            poisoned = poisons[w * 32 // E.bits // L.cols]
            kept = kept + (tl.where(poisoned, E.poison[w % len(E.poison)], words[w]),)
        words = kept
    return words


@triton.jit(do_not_specialize=("rows", "padded_rows", "tiles_per_row", "k0", "k1", "tensor", "step"))
def quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, tensor_ptr, amax_ptr, whole_ptr, flips_ptr, step_ptr, tables,
    rows, cols, padded_rows, padded_cols, tiles_per_row, row_bytes, k0, k1, tensor, step,
    E: tl.constexpr, R: tl.constexpr, S: tl.constexpr, F: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    L: tl.constexpr,
):  # fmt: skip
    """Quantize one block of groups.

    Facts: E element, R rounding, S scale, F its format, H rotation, W way, L layout.
    """
    base, at, left, element, code_base, code_at, tile, leader, inside = place(
        rows, cols, padded_rows, padded_cols, tiles_per_row, row_bytes, E.bits, L
    )
    raw = load_group(x_ptr + base // L.per_item, flips_ptr, at, left, element, H, L, L.group // L.vector)
    values = values_of(raw, H, L, not W.merged)
    if S.kind == "one":
        if E.family == "float":
            grid = grid_of(L.groups + 0, E)
        elif E.family == "table":
            grid = tables
        else:
            grid = ()
        scaling = ((1.0,), (grid,), (False,))
    else:
        pointers, places = (scales_ptr, tensor_ptr, amax_ptr, whole_ptr), (tile, leader, inside)
        scaling = scales_of(values, places, pointers, tables, tiles_per_row, E, S, F, H, W, L)
        if L.given == "none" and L.inside > 1 and H.size == 1:
            values = values_of(again(raw, L, L.group // L.vector), H, L, not W.merged)
    if R.random:
        if step_ptr is not None:
            step = tl.load(step_ptr)
    words = words_of(values, scaling, element, (tensor, step, k0, k1), E, R, S, W, L)
    if L.ragged:
        left_bits = (padded_cols - element % padded_cols).to(tl.int32) * E.bits
        store_bytes(codes_ptr + code_base + code_at, words, inside, left_bits, len(words))
    else:
        store_words(codes_ptr + code_base // 4 + code_at // 4, words, inside, len(words), L)


@triton.jit(do_not_specialize=("k0", "k1", "tensor", "step"))
def flips_kernel(flips_ptr, step_ptr, k0, k1, tensor, step, SIZE: tl.constexpr):
    """Write the fresh signs of a Hadamard transform as sign bits: the last bits of the stream's first draws."""
    if step_ptr is not None:
        step = tl.load(step_ptr)
    element = tl.arange(0, SIZE)
    draw = one_draw(element.to(tl.int64), tensor, step, k0, k1)
    kind: tl.constexpr = flips_ptr.dtype.element_ty
    tl.store(flips_ptr + element, ((draw & 1) << (kind.primitive_bitwidth - 1)).to(kind))


@dataclass(frozen=True)
class Counter:
    """A `Stream` as kernels take it: its seed in two int32 halves, tensor and step as int32, or step as a tensor."""

    low: int
    high: int
    tensor: int
    step: int | Tensor

    @staticmethod
    def of(seed: int, tensor: int, step: int | Tensor) -> "Counter":
        """Split a 64-bit seed; numbers are taken modulo 2**32."""
        number = as_int32(step) if isinstance(step, int) else step
        return Counter(as_int32(seed), as_int32(seed >> 32), as_int32(tensor), number)

    @property
    def arguments(self) -> dict[str, int | Tensor | None]:
        """Keyword arguments of a kernel."""
        number, held = (self.step, None) if isinstance(self.step, int) else (0, self.step)
        return {"k0": self.low, "k1": self.high, "tensor": self.tensor, "step": number, "step_ptr": held}


def flips(transform: Hadamard | None, counter: Counter | None, x: Tensor) -> Tensor | None:
    """Return the sign bits that a transform flips, in integers as wide as the elements of ``x``, or None.

    ``[size]`` of them, or 8 where the size is less (repeated).
    """
    if transform is None or transform.signs == "none":
        return None
    kind = torch.int32 if x.element_size() == 4 else torch.int16
    if transform.signs == "fixed":
        signs = _fixed_flips(transform, kind, x.device)
    else:
        assert counter is not None
        signs = torch.empty(transform.size, dtype=kind, device=x.device)
        flips_kernel[(1,)](signs, **counter.arguments, SIZE=transform.size, num_warps=1)
    return signs.repeat(8 // transform.size) if transform.size < 8 else signs


@lru_cache(maxsize=64)
def _fixed_flips(transform: Hadamard, kind: torch.dtype, device: torch.device) -> Tensor:
    bit = torch.iinfo(kind).min
    return torch.where(transform.sign_vector(None) < 0, bit, 0).to(kind).to(device)


def codes_and_scales(
    x: Tensor,
    cast: Cast,
    padded: tuple[int, ...],
    given: Tensor | None = None,
    whole: Tensor | None = None,
    counter: Counter | None = None,
    chosen: Knobs | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed codes, stored scales (empty without a scale), and the tensor's scale (unset where there is none).

    Args:
        x: contiguous, not empty, its rows a multiple of the tile's where there are leading axes.
        cast: what is done; `reason` has found nothing against it.
        padded: shape of ``x`` padded to whole tiles.
        given: float32 maxima, where `launch.given` says so.
        whole: the tensor's largest magnitude, float32 [1], for two levels.
        counter: of the random bits.
        chosen: launch knobs other than the heuristic's.
    """
    matrix = Matrix.of(tuple(x.shape), padded)
    chosen = chosen or knobs(cast, matrix)
    made, grid = layout(cast, matrix, x, chosen)
    row_bytes = packed_size(matrix.padded_cols, cast.format.bits)
    width = row_bytes if made.ragged else row_bytes // 4
    codes = torch.empty(matrix.padded_rows, width, dtype=torch.uint8 if made.ragged else torch.int32, device=x.device)
    scales = torch.empty(scales_shape(cast, padded), dtype=scales_dtype(cast), device=x.device)
    tensor_scale = torch.empty((), device=x.device)
    quantize_kernel[grid](
        items_of(x, made.pairs),
        codes,
        scales,
        tensor_scale,
        None if given is None else given.view(torch.int32),
        None if whole is None else whole.view(torch.int32),
        items_of(flips(cast.transform, counter, x), made.pairs),
        tables=tables_of(cast.format, cast.rounding, x.device) if isinstance(cast.format, Tabulated) else None,
        rows=matrix.rows,
        cols=matrix.cols,
        padded_rows=matrix.padded_rows,
        padded_cols=matrix.padded_cols,
        tiles_per_row=scales.shape[-2] if cast.tile.cols and made.given == "none" else 1,
        row_bytes=row_bytes,
        **(counter or Counter(0, 0, 0, 0)).arguments,
        **constants(cast, x.device),
        L=made,
        num_warps=chosen.warps,
        maxnreg=chosen.registers,
        enable_fp_fusion=False,
    )
    return codes.view(torch.uint8).view(*padded[:-1], row_bytes), scales, tensor_scale


def constants(cast: Cast, device: torch.device) -> dict[str, object]:
    """Return what a kernel is told of a cast when it is compiled."""
    element, rounding = element_of(cast.format, cast.rounding), rounding_of(cast.rounding)
    scale, rotation = scale_facts(cast.scale, cast.format), rotation_of(cast.transform)
    pairs = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
    way = way_of(element, rounding, scale, rotation, pairs)
    return {"E": element, "R": rounding, "S": scale, "F": scale_format(cast.scale), "H": rotation, "W": way}


def tiles_shape(cast: Cast, padded: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one number per tile, axes inside a tile of size 1."""
    tile, (*lead, last) = cast.tile, padded
    if tile.is_tensor:
        return (1,) * len(padded)
    if tile.cols == 0:
        return (*lead, 1)
    if tile.rows == 1:
        return (*lead, last // tile.cols, 1)
    return (*lead[:-1], lead[-1] // tile.rows, 1, last // tile.cols, 1)


def scales_shape(cast: Cast, padded: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of `Scale.stored`; nothing is stored without a scale."""
    return tiles_shape(cast, padded) if cast.scale.bits else (0,)


def scales_dtype(cast: Cast) -> torch.dtype:
    """Return the dtype of `Scale.stored`."""
    if isinstance(cast.scale, Narrow | TwoLevel):
        return cast.scale.format.code_dtype
    return torch.uint8 if isinstance(cast.scale, PowerOfTwo) else torch.float32
