"""A cast: how one tensor is narrowed. Transform, scaling, format, rounding; and what comes of it, a `QTensor`.

    x  ~  inverse_transform(decode(codes) * scale)

Spelling: ``format/tile/scale/rounding[/transform]``, e.g. ``e2m1fn/1x32/e8m0/stochastic/hadamard32``. The last two
may be left out (nearest-even, no transform); a bare format means no scaling at all (``bfloat16``). Presets are names
for such spellings.

The arithmetic, the same everywhere: the source as float32, times `Scale.into` (float32; the rules of `scaling.divided`
divide instead), rounded once to the format; back: the value times each factor of `Scale.back` in turn, in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import lcm, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.accumulate import Codes
from narrowcast.errors import InputError, nearest
from narrowcast.formats import NEAREST_EVEN, Format, Integer, Minifloat, Rounding, Stream, find, format, known_names
from narrowcast.formats import rounding as rounding_of
from narrowcast.formats.format import float32_of
from narrowcast.formats.packing import pack, unpack
from narrowcast.presets import PRESETS as PRESETS
from narrowcast.scaling import TENSOR, One, Scale, ScaleRule, Tile, scale_rule, tile
from narrowcast.transforms import Hadamard, transform

UNSCALED = One()


@dataclass(frozen=True)
class Cast:
    """How one tensor is narrowed. The last axis is the contraction axis; tiles and transform run along it.

    Attributes:
        format: element format.
        tile: which elements share a scale.
        scale: how a tile's scale comes about.
        rounding: rounding mode of the elements.
        transform: exact change of basis before the cast, undone when decoding; or None.
    """

    format: Format
    tile: Tile = TENSOR
    scale: ScaleRule = UNSCALED
    rounding: Rounding = NEAREST_EVEN
    transform: Hadamard | None = None

    def __post_init__(self) -> None:
        _ = self.spelling  # made now: see there

    @property
    def is_identity(self) -> bool:
        """Whether the cast leaves every float32 as it is."""
        return self.format.name == "float32" and isinstance(self.scale, One) and self.transform is None

    @property
    def random(self) -> bool:
        """Whether the cast draws random bits."""
        return self.rounding.random or (self.transform is not None and self.transform.signs == "fresh")

    def apply(
        self, x: Tensor, stream: Stream | None = None, history: Tensor | None = None, what: str = "tensor"
    ) -> Tensor:
        """Return what ``x`` becomes, as float32 of the same shape: ``quantize(x).dequantize()`` without the codes.

        The identity cast leaves float64 as it is, so that wide gemms can be checked in double precision.

        Args:
            x: any float dtype, ``[..., K]``.
            stream: source of random bits, where the cast draws any.
            history: amax history of a delayed scale (`Delayed.new`), updated in place.
            what: name for error messages.
        """
        if self.is_identity:
            return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
        source = self._source(x, stream, what)
        blocks, inside = self.tile.blocks(source)
        scale = None if isinstance(self.scale, One) else self._scale(blocks, inside, history)
        scaled = blocks if scale is None else scale.scaled(blocks)
        values = self.format.round(scaled, self.rounding, self._draws(source, blocks, stream))
        values = values if scale is None else scale.apply(values)
        return self._finish(values.view(source.shape), x.shape, stream)

    def split(
        self, x: Tensor, stream: Stream | None = None, history: Tensor | None = None, what: str = "tensor"
    ) -> Codes:
        """Return what ``x`` becomes before its scales are put back, for accumulators that work on codes.

        Arguments as for `apply`. The codes of integer formats are counted in steps. Raises InputError where the cast's
        own transform would have to be undone before the product.
        """
        if self.transform is not None:
            raise InputError(f"cast {self}: its transform is undone before a product of codes; give it to the gemm")
        self.scale.numbers.check_products(str(self))
        source = self._source(x, stream, what)
        blocks, axes = self.tile.blocks(source)
        scale = self._scale(blocks, axes, history)
        values = self.format.round(scale.scaled(blocks), self.rounding, self._draws(source, blocks, stream))
        spread = scale.apply(torch.where(blocks < 0, -1.0, 1.0)).abs()
        step = self.format.smallest if isinstance(self.format, Integer) else 1.0
        cut = [t.view(source.shape)[tuple(map(slice, x.shape))].detach() for t in (values / step, spread * step)]
        return Codes(cut[0], cut[1], self.format.smallest_normal / step)

    def quantize(
        self, x: Tensor, stream: Stream | None = None, history: Tensor | None = None, what: str = "tensor"
    ) -> "QTensor":
        """Return codes and scales of ``x`` ``[..., K]``; arguments as for `apply`."""
        if (own := self.own(x)) is not None:
            return replace(own, codes=own.codes.clone())
        source = self._source(x, stream, what)
        blocks, inside = self.tile.blocks(source)
        scale = self._scale(blocks, inside, history)
        codes = self.format.encode(scale.enter(blocks), self.rounding, self._draws(source, blocks, stream))
        packed = pack(codes.reshape(source.shape), self.format.bits)
        return QTensor(packed, scale.stored, scale.tensor, self, tuple(x.shape), tuple(source.shape), x.dtype, stream)

    def own(self, x: Tensor) -> "QTensor | None":
        """Return ``x`` as codes, memory shared, where it has this bare format: no bit changes, not even a NaN's."""
        bare = self.spelling == self.format.name and x.dim() > 0 and x.numel() > 0
        if not (bare and isinstance(self.format, Minifloat) and self.format.torch_dtype == x.dtype):
            return None
        scales, shape = torch.ones((1,) * x.dim(), device=x.device), tuple(x.shape)
        codes = x.detach().reshape(-1).contiguous().view(torch.uint8).view(*shape[:-1], -1)  # flat: any strides
        return QTensor(codes, scales, None, self, shape, shape, x.dtype)

    def settle(self, x: Tensor, ratio: Tensor | None = None, what: str = "tensor") -> "Settled":
        """Settle the scales for ``x`` ``[..., K]`` once, so that other values can be rounded under them.

        Args:
            x: the tensor whose tile maxima decide.
            ratio: what each tile's maximum is multiplied by first (a scale search's answer), of the tiles' shape
                (`Settled.tiles`); None for 1.
            what: name for error messages.

        Raises InputError for casts with a transform: rotate the tensor first, so that its columns mean something.
        """
        if self.transform is not None:
            raise InputError(f"cast {self}: scales are settled after the transform; apply it to {what} first")
        source = self._source(x, None, what)
        blocks, inside = self.tile.blocks(source)
        return Settled(self, self._scale(blocks, inside, None, ratio), tuple(x.shape), tuple(source.shape), x.dtype)

    def bits_per_element(self, shape: tuple[int, ...]) -> float:
        """Return stored bits per element of a tensor of ``shape``, scales counted."""
        count = prod(shape)
        scales = self.scale.total_bits(self.tile.count(tuple(shape)))
        return self.format.bits + scales / count if count else float(self.format.bits)

    def padded_shape(self, shape: tuple[int, ...], what: str = "tensor") -> tuple[int, ...]:
        """Return the shape of the codes (before packing) of a tensor of ``shape``: padded to whole tiles and blocks."""
        if self.tile.pad and self.transform and shape:
            shape = (*shape[:-1], shape[-1] + -shape[-1] % self.padding_multiple())
        shape = self.tile.padded_shape(shape, what)
        if self.transform:
            self.transform.check(shape)
        return shape

    def padding_multiple(self) -> int:
        """Return what the last axis must be a multiple of, 1 where anything goes."""
        return lcm(self.tile.cols or 1, self.transform.size if self.transform else 1)

    def _source(self, x: Tensor, stream: Stream | None, what: str) -> Tensor:
        source = float32_of(x)
        if self.tile.pad and self.transform and x.dim():
            source = F.pad(source, (0, -x.shape[-1] % self.padding_multiple()))
        source = self.tile.padded(source, what)
        return self.transform.forward(source, stream) if self.transform else source

    def _scale(
        self, blocks: Tensor, inside: tuple[int, ...], history: Tensor | None, ratio: Tensor | None = None
    ) -> Scale:
        if not self.scale.needs_amax or blocks.numel() == 0:
            one_each = [1 if {a, a - blocks.dim()} & {*inside} else n for a, n in enumerate(blocks.shape)]
            return self.scale.scale(blocks.new_zeros(one_each), self.format)
        amax = self.scale.extent(blocks, inside)
        if ratio is not None:
            amax = amax * ratio
        if self.scale.delayed is not None:
            if history is None:
                raise InputError(f"cast {self} scales by a history: pass history=Delayed.new()")
            amax = self.scale.delayed.amax(history, amax.amax()).view(amax.shape)
        return self.scale.scale(amax, self.format)

    def _draws(self, source: Tensor, blocks: Tensor, stream: Stream | None) -> Tensor | None:
        if not self.rounding.random:
            return None
        if stream is None:
            raise InputError(f"cast {self} draws random bits: pass seed= or a Stream")
        return stream.bits(source.shape, device=source.device).view(blocks.shape)

    def _finish(self, values: Tensor, shape: torch.Size | tuple[int, ...], stream: Stream | None) -> Tensor:
        if self.transform:
            values = self.transform.inverse(values, stream)
        if values.shape != shape:
            values = values[tuple(slice(0, n) for n in shape)]
        return values

    @cached_property
    def spelling(self) -> str:
        """The cast as text, which `cast` reads back: made at birth, so that compiled code finds it ready.

        Kernels take a cast by its spelling; a compiler that follows the making of it trips over numbers that vary.
        """
        rest = (self.tile, self.scale, self.rounding, self.transform)
        if rest == (TENSOR, UNSCALED, NEAREST_EVEN, None):
            return str(self.format)
        tail = f"/{self.transform}" if self.transform else ""
        return f"{self.format}/{self.tile}/{self.scale}/{self.rounding}{tail}"

    def __str__(self) -> str:
        return self.spelling


@dataclass(frozen=True)
class Settled:
    """A cast whose scales are settled: whatever is rounded now, the scales stay.

    Attributes:
        cast: format, tile, scale rule, rounding.
        scale: the scales, shaped as the tiles of the padded tensor.
        shape, padded: of the tensor, before and after padding to whole tiles.
        dtype: of the tensor.
    """

    cast: Cast
    scale: Scale
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    dtype: torch.dtype

    def apply(self, x: Tensor) -> Tensor:
        """Return what ``x`` (of `shape`) becomes under the settled scales, float32."""
        return self.round(x, *self.factors())

    def apply_to(self, x: Tensor) -> Tensor:
        """Return what ``x`` of any shape becomes under the one settled scale of a ``tensor`` tile."""
        if not self.cast.tile.is_tensor:
            raise InputError(f"cast {self.cast}: only one scale per tensor fits a tensor of another shape")
        into, *back = (factor.reshape(self.scale.numbers.shape) for factor in (self.scale.into, *self.scale.back))
        return self.round(x, into, tuple(back))

    def round(self, x: Tensor, into: Tensor, back: tuple[Tensor, ...]) -> Tensor:
        """Return what values become under the matching slices of `factors`: any columns, any rows."""
        return self.leave(self.cast.format.round(self.enter(x, into), self.cast.rounding), back)

    def enter(self, x: Tensor, into: Tensor) -> Tensor:
        """Return values as the element format sees them, under the matching slice of what multiplies in."""
        return self.scale.numbers.enter(float32_of(x), self.scale.numbers.unstacked(into), self.scale.times)

    def leave(self, values: Tensor, back: tuple[Tensor, ...]) -> Tensor:
        """Return values of the element format on their way back, in place."""
        for factor in back:
            values = self.scale.numbers.leave(values, self.scale.numbers.unstacked(factor))
        return values

    def factors(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what multiplies in and what multiplies back, each as float32 of `shape`.

        Where a tile has two numbers (`scaling.numbers`) each is ``[2, *shape]``.
        """
        return self._spread(self.scale.into), tuple(self._spread(factor) for factor in self.scale.back)

    def quantize(self, x: Tensor) -> "QTensor":
        """Return codes and scales of ``x`` (of `shape`) under the settled scales."""
        source = self.cast.tile.padded(float32_of(x))
        blocks, _ = self.cast.tile.blocks(source)
        codes = self.cast.format.encode(self.scale.enter(blocks), self.cast.rounding)
        packed = pack(codes.reshape(self.padded), self.cast.format.bits)
        return QTensor(packed, self.scale.stored, self.scale.tensor, self.cast, self.shape, self.padded, self.dtype)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Shape of one number per tile, as `Cast.settle` takes for ``ratio``."""
        return tuple(self.scale.stored.shape)

    def _spread(self, factor: Tensor) -> Tensor:
        inside = tuple(slice(0, n) for n in self.shape)
        spread = [self.cast.tile.spread(one, self.padded)[inside] for one in self.scale.numbers.apart(factor)]
        return torch.stack(spread).view(*self.scale.numbers.shape, *self.shape)


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor: ``x ~ inverse_transform(decode(codes) * scale)``.

    Attributes:
        codes: packed element codes, uint8, the padded shape with the last axis packed (`packing`).
        scales: one per tile, as the scale format stores them (uint8 codes or float32).
        tensor_scale: the second-level float32 scale, or None.
        cast: how it was made.
        shape, padded: shape of the source, and of the codes before packing.
        dtype: dtype of the source, which `dequantize` returns.
        stream: where the random signs of a transform came from.
        axis: which axis of the original tensor is the last one here.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    cast: Cast
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    dtype: torch.dtype
    stream: Stream | None = None
    axis: int = -1

    def dequantize(self) -> Tensor:
        """Return the values, with the shape and dtype of the source."""
        bits, last = self.cast.format.bits, self.padded[-1] if self.padded else 1
        values = self.cast.format.decode(self.codes if bits == 8 else unpack(self.codes, bits, last)).view(self.padded)
        blocks, _ = self.cast.tile.blocks(values)
        for factor in self.cast.scale.restore(self.scales, self.tensor_scale):
            self.cast.scale.numbers.leave(blocks, self.cast.scale.numbers.apart(factor))
        values = self.cast._finish(values, self.shape, self.stream)
        return values.to(self.dtype).movedim(-1, self.axis) if self.shape else values.to(self.dtype)

    def rows(self, start: int, stop: int) -> "QTensor":
        """Return rows ``start`` to ``stop`` of a matrix; the scale of the whole tensor stays shared.

        Raises InputError where a tile would be cut.
        """
        height = self.cast.tile.rows
        if len(self.shape) != 2 or start % max(height, 1) or (stop % max(height, 1) and stop != self.shape[0]):
            raise InputError(f"{self}: rows {start} to {stop} cut a tile of {self.cast.tile}")
        if self.cast.scale.in_order:
            raise InputError(f"{self}: its scales are quantized in groups that rows would cut; quantize the rows apart")
        last = stop if stop < self.shape[0] else self.padded[0]
        scales = self.scales if height == 0 else self.scales[start // height : -(-last // height)]
        shape, padded = (stop - start, self.shape[1]), (last - start, self.padded[1])
        return replace(self, codes=self.codes[start:last], scales=scales, shape=shape, padded=padded)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.numel() + -(-self.cast.scale.total_bits(self.cast.tile.count(self.padded)) // 8)

    def __repr__(self) -> str:
        return f"QTensor({self.cast}, shape={self.shape}, nbytes={self.nbytes})"


@lru_cache(maxsize=1024)
def _parse(spelling: str) -> Cast:
    tokens = PRESETS.get(spelling, spelling).split("/")
    if len(tokens) == 1:
        if (found := find(spelling)) is None:
            raise InputError(f"unknown format or cast {spelling!r}{nearest(spelling, [*known_names(), *PRESETS])}")
        return Cast(found)
    parsers: tuple[Callable[[str], object], ...] = (format, tile, scale_rule, rounding_of, transform)
    parts: list[object] = []
    position = 0
    for parse, token in zip(parsers, tokens, strict=False):
        try:
            parts.append(parse(token))
        except InputError as error:
            raise InputError(f"malformed cast {spelling!r} at character {position + 1} ({token!r}): {error}") from None
        position += len(token) + 1
    if not 3 <= len(tokens) <= len(parsers):
        raise InputError(
            f"malformed cast {spelling!r} at character {position + 1}: found {len(tokens)} parts, expected "
            "format/tile/scale[/rounding[/transform]], e.g. e2m1fn/1x32/e8m0/nearest-even"
        )
    return Cast(*parts)  # type: ignore[arg-type]


def cast(spelling: "str | Cast") -> Cast:
    """Return the cast that ``spelling`` names: a preset, a format, or ``format/tile/scale[/rounding[/transform]]``.

    Raises InputError with the position of the first part that does not parse.

    >>> str(cast("mxfp4"))
    'e2m1fn/1x32/e8m0/nearest-even'
    """
    return spelling if isinstance(spelling, Cast) else _parse(spelling)


def quantize(
    x: Tensor,
    spelling: "str | Cast",
    axis: int = -1,
    seed: int | None = None,
    by: "Callable[[Cast, Tensor, Stream | None], QTensor]" = Cast.quantize,
) -> "QTensor":
    """Quantize ``x`` with tiles along ``axis``.

    Args:
        x: float tensor of any shape; refused if it is empty of axes or not floating point.
        spelling: a cast, its spelling or a preset.
        axis: the contraction axis.
        seed: for casts that draw random bits.
        by: `Cast.quantize`, the definition, or its kernel twin (`backend.quantize` chooses).
    """
    if x.dim() == 0:
        raise InputError("cannot quantize a 0-d tensor: it has no axis to tile; reshape it to [1]")
    q = by(cast(spelling), x.movedim(axis, -1), None if seed is None else Stream(seed))
    return q if axis in (-1, x.dim() - 1) else replace(q, axis=axis)
