"""What formats and casts cost on real tensors: each one, and all of them pooled, at every tile size.

A tensor is judged as the matrix that a gemm would see, contraction axis last: a linear layer's ``[out, in]`` as it is,
stacked experts' ``[experts, out, in]`` as ``[experts * out, in]``, a convolution's ``[out, in, h, w]`` as
``[out, in * h * w]``. Tensors of one axis (biases, norms) and integers are passed over, and said to be. Pooled figures
add up signal and noise over the tensors, so large and loud ones count for more.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.crest import crest_factors, spread
from narrowcast.analysis.format_error import TILES, at_tile, is_signed
from narrowcast.analysis.loss import Loss, decibels, narrowed
from narrowcast.errors import InputError
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast
from narrowcast.scaling import One, Tile, tile

LARGEST = 1 << 22  # elements of a tensor that are judged; of larger ones evenly spaced rows
CREST_TILE = tile("1x32+pad")
AS_GIVEN = "as given"  # the column of a cast's own tile, or of a bare format without any scale


def contraction_last(x: Tensor) -> Tensor:
    """Return a view of ``x`` whose last axis is the one a gemm sums over: of a convolution's kernel (four axes or
    more) all but the first in one; of a number an axis of length 1.
    """
    return x.reshape(1) if x.dim() == 0 else x.flatten(1) if x.dim() >= 4 else x


def matrix(x: Tensor) -> Tensor | None:
    """Return ``x`` as a float32 matrix ``[out, contraction]`` of at most `LARGEST` elements, or None for no matrix."""
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        return None
    rows = contraction_last(x).flatten(0, -2)
    if x.numel() > LARGEST:
        count = max(1, LARGEST // rows.shape[1])
        rows = rows[torch.linspace(0, len(rows) - 1, count).round().long()]
    return rows.float()


def tile_losses(cast: Cast, x: Tensor, tiles: tuple[Tile, ...] = TILES, seed: int = 0) -> dict[str, Loss]:
    """Return what ``cast`` loses of the matrix ``x`` as it is given, and at each of ``tiles``, by the tile's name.

    Formats without a sign are judged on the absolute values.
    """
    source = x if is_signed(cast.format) else x.abs()
    given = replace(cast, tile=replace(cast.tile, pad=cast.tile.cols > 0))
    found = {AS_GIVEN: narrowed(given, source, seed)[1]}
    for size in tiles:
        found[str(size).removesuffix("+pad")] = narrowed(at_tile(cast, size), source, seed)[1]
    return found


def against(
    tensors: Iterable[tuple[str, Tensor]],
    casts: dict[str, Cast],
    seed: int = 0,
    note: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Judge ``casts`` (by the name they are shown under) on ``tensors`` and return plain JSON values.

    ``tensors``: one row per matrix with shape, quartiles of the crest factor in blocks of 32, and per cast the SQNR in
    dB at each tile; ``pooled``: per cast the SQNR at each tile over all; ``compared``: per cast the tile to compare it
    at; ``passed_over``: name and reason.
    ``note`` is called with each tensor's name.
    Raises InputError naming the tensors that hold NaN or infinities, and where there is no matrix at all.
    """
    rows: list[dict[str, Any]] = []
    passed_over: list[tuple[str, str]] = []
    totals: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in casts}
    for name, tensor in tensors:
        note(name)
        x = matrix(tensor)
        if x is None:
            passed_over.append((name, _why(tensor)))
            continue
        if not x.isfinite().all():
            raise InputError(f"tensor {name} holds NaN or infinite values; the file is damaged, or no weights")
        losses = {cast: tile_losses(casts[cast], x, seed=seed) for cast in casts}
        rows.append(_row(name, tensor, x, losses))
        for cast, at in losses.items():
            _add(totals[cast], at)
    if not rows:
        raise InputError(f"no matrix among {len(passed_over)} tensors: nothing to judge the formats on")
    pooled = {cast: {size: decibels(*sums) for size, sums in at.items()} for cast, at in totals.items()}
    compared = {name: column(cast) for name, cast in casts.items()}
    return {"tensors": rows, "pooled": pooled, "compared": compared, "passed_over": passed_over}


def column(cast: Cast) -> str:
    """Return at which tile ``cast`` is best compared: its own; a bare format that a scale helps, under one per row."""
    return "row" if isinstance(cast.scale, One) and at_tile(cast, cast.tile) != cast else AS_GIVEN


def _why(tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return f"{dtype_name(tensor.dtype)}: not floating point"
    return "empty" if tensor.numel() == 0 else f"{tensor.dim()} axis: a bias or a norm, no matrix"


def _row(name: str, tensor: Tensor, x: Tensor, losses: dict[str, dict[str, Loss]]) -> dict[str, Any]:
    crest = spread(crest_factors(x, CREST_TILE))
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "judged": x.numel(),
        "crest": asdict(crest) if crest else None,
        "sqnr_db": {cast: {size: loss.sqnr_db for size, loss in at.items()} for cast, at in losses.items()},
    }


def _add(total: dict[str, tuple[float, float]], losses: dict[str, Loss]) -> None:
    for size, loss in losses.items():
        signal, noise = total.get(size, (0.0, 0.0))
        total[size] = (signal + loss.signal, noise + loss.noise)


@torch.no_grad()
def inputs_of(model: nn.Module, forward: Callable[[], object], rows: int = 4096) -> dict[str, Tensor]:
    """Run ``forward`` and return what each linear layer of ``model`` multiplied first, float32 ``[<= rows, in]``."""
    caught: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def catch(layer: nn.Module, args: Any) -> None:
            caught.setdefault(name, args[0].reshape(-1, args[0].shape[-1])[:rows].float().clone())

        return catch

    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in linears]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return caught


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the parameters of ``model`` as `against` takes them: `against(named(model), casts)` is a crest report."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
