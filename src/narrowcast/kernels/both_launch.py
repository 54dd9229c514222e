"""How the pass over both orientations is launched: what it writes, and the arguments of its kernels."""

from dataclasses import replace

import torch
from torch import Tensor

from narrowcast.kernels import both as device
from narrowcast.kernels.launch import power_of_two
from narrowcast.kernels.produce import Producer
from narrowcast.kernels.quantize import Counter, scales_dtype
from narrowcast.kernels.sides import Knobs, Shape, Side, block, knobs, maxima_knobs, side, tile_kind
from narrowcast.quantize import Cast
from narrowcast.quantize import cast as cast_of

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Sources = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def stored_shape(cast: Cast, padded: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape in which the pass writes scales."""
    rows, cols = padded
    match tile_kind(cast):
        case "one":
            return (0,)
        case "tensor":
            return (1,)
        case "line":
            return (rows,)
        case "run":
            return cols // cast.tile.cols, rows
        case _:
            return cols // cast.tile.cols, rows // cast.tile.rows


def empty(x: Tensor, kind: str, cast: str, across: str) -> Four:
    """Return what the pass writes, not yet written."""
    first, second = cast_of(cast), cast_of(across) if across else None
    sizes = Shape.of(Producer(kind).shape((x.shape[0], x.shape[1])), first, second)
    padded, other = (sizes.rows, sizes.cols), (sizes.turned_rows, sizes.turned_cols)
    scales = x.new_empty(stored_shape(first, padded), dtype=scales_dtype(first))
    turned_scales = x.new_empty(0, dtype=torch.float32)
    if second is not None:
        turned_scales = x.new_empty(stored_shape(second, other), dtype=scales_dtype(second))
    return x.new_empty(padded, dtype=torch.uint8), scales, x.new_empty(other, dtype=torch.uint8), turned_scales


def _as_items(x: Tensor | None) -> Tensor | None:
    """Return bits that kernels load: int16 or int32."""
    return None if x is None else x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def _arguments(sources: Sources) -> tuple[Sources, tuple[int, ...]]:
    """Return the pointers and the strides that a kernel takes."""
    x, y, z, line, column = sources
    strides = [t.stride(0) if t is not None else 0 for t in (x, y, z)]
    return (_as_items(x), _as_items(y), _as_items(z), line, column), tuple(strides)


def launch(
    sources: Sources,
    kind: str,
    cast: Cast,
    across: Cast | None,
    maxima: tuple[Tensor | None, Tensor | None] = (None, None),
    counters: tuple[Counter, Counter] | None = None,
    delayed: tuple[str, Tensor | None, Tensor | None] = ("", None, None),
    outs: Four | None = None,
    chosen: Knobs | None = None,
) -> Four:
    """Run the pass once; ``delayed`` is (which go, history, maximum under way)."""
    x, line = sources[0], sources[3]
    assert x is not None
    make = Producer(kind, line is not None)
    first, second = _side(cast.spelling, x.device), None if across is None else _side(across.spelling, x.device)
    sides = (first,) if second is None else (first, second)
    chosen = chosen or knobs(
        kind, max(s.run for s in sides), tuple(s.tile for s in sides), any(s.R.random for s in sides[1:])
    )
    made_shape = make.shape((x.shape[0], x.shape[1]))
    shape, sizes = (made_shape[0], x.shape[1]), Shape.of(made_shape, cast, across)
    outs = outs or empty(x, kind, cast.spelling, across.spelling if across is not None else "")
    each = replace(sizes, cols=sizes.cols // make.parts, turned_rows=sizes.turned_rows // make.parts)
    waits = any(s.tile in ("run", "square") for s in sides)
    made = block(shape, each, x, chosen, waits, maxima != (None, None) or delayed[0] == "again")
    made = replace(made, delayed=delayed[0])
    height, width = -(-each.extent[0] // made.height), -(-each.extent[1] // made.width)
    pointers, strides = _arguments(sources)
    codes, scales, turned_codes, turned_scales = outs
    one, other = counters or (Counter(0, 0, 0, 0), Counter(0, 0, 0, 0))
    _, history, current = delayed
    device.both_kernel[(height * width,)](
        *pointers,
        codes,
        scales,
        turned_codes if made.ragged else turned_codes.view(torch.int32),
        turned_scales,
        *(None if m is None else m.view(torch.int32) for m in maxima),
        None if history is None else history.view(torch.int32),
        current,
        one.arguments["step_ptr"],
        other.arguments["step_ptr"],
        *strides,
        *shape,
        each.rows,
        each.cols,
        each.turned_rows,
        each.turned_cols,
        height,
        width,
        0 if history is None else len(history),
        one.low,
        one.high,
        one.tensor,
        one.arguments["step"],
        other.low,
        other.high,
        other.tensor,
        other.arguments["step"],
        P=make,
        A=first,
        B=second,
        L=made,
        HISTORY=power_of_two(1 if history is None else len(history)),
        num_warps=chosen.warps,
        maxnreg=chosen.registers,
        enable_fp_fusion=False,
    )
    return outs


def _side(spelling: str, where: torch.device) -> Side:
    pairs = where.type != "cuda" or torch.cuda.get_device_capability(where) >= (9, 0)
    return side(cast_of(spelling), pairs)


def launch_maxima(sources: Sources, kind: str, whole: bool, chosen: Knobs | None = None) -> Tensor:
    """Return the maxima of what a producer makes: ``[1]`` of all, or of the rows and then of the columns."""
    x, line = sources[0], sources[3]
    assert x is not None
    make = Producer(kind, line is not None)
    chosen = chosen or maxima_knobs(make.parts, whole)
    rows, cols = make.shape((x.shape[0], x.shape[1]))[0], x.shape[1]
    made = block((rows, cols), Shape(rows, cols, cols, rows), x, chosen, kind != "plain")
    height, width = -(-rows // made.height), -(-cols // made.width)
    found = torch.zeros(1 if whole else rows + cols * make.parts, dtype=torch.int32, device=x.device)
    pointers, strides = _arguments(sources)
    device.maxima_kernel[(height * width,)](
        *pointers,
        found,
        found if whole else found[rows:],
        *strides,
        rows,
        cols,
        height,
        width,
        WHOLE=whole,
        P=make,
        L=made,
        num_warps=chosen.warps,
        enable_fp_fusion=False,
    )
    return found.view(torch.float32)
