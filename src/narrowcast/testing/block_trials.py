"""A trial of a block format: what a foreign function made of blocks, held against what a `Scaler` would have made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from narrowcast.formats import Format
from narrowcast.quantize import Cast
from narrowcast.testing.blocks import NAMES, SCALE_TENSOR, classes, scale_classes
from narrowcast.testing.inputs import bits_of
from narrowcast.testing.scaler import Scaler, scale_format, scaler
from narrowcast.testing.trials import (
    Difference,
    by_class,
    code_keys,
    float_bits,
    has_negative_zero,
    hexadecimal,
    keys_of_values,
    spread,
    value_keys,
)

_ELEMENTS = 1 << 12  # the same, in elements, for large blocks
_BLOCKS = 16  # blocks with answers of each class and either sort that the search looks at


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back for ``n`` blocks of ``size`` elements.

    Attributes:
        elements: int64 codes, or float64 dequantized values, ``[n, size]``.
        scales: values of the stored scales, float64 ``[n]``; None where only dequantized values came back.
        tensor: the tensor's scale, float64 ``[1]``, or None.
    """

    elements: Tensor
    scales: Tensor | None = None
    tensor: Tensor | None = None


@dataclass(frozen=True, eq=False)
class BlockTrial:
    """The answers for one scene. They are numbered: all elements, block by block; then the scales; then the tensor's.

    Attributes:
        scene: its name; of several scenes in one, "".
        blocks: float32 ``[n, size]``.
        answer: what came back.
        cast: what was asked for.
        element_classes, scale_classes: class of each element ``[n, size]`` and of each scale ``[n]``.
        places: name of the scene and the number in it of each block.
    """

    scene: str
    blocks: Tensor
    answer: Answer
    cast: Cast
    element_classes: Tensor
    scale_classes: Tensor
    places: tuple[str, ...]
    names: tuple[str, ...] = NAMES

    @property
    def classes(self) -> Tensor:
        """See `Trial.classes`."""
        parts = [self.element_classes.flatten()]
        if self.answer.scales is not None:
            parts.append(self.scale_classes)
        if self.answer.tensor is not None:
            parts.append(torch.tensor([SCALE_TENSOR]))
        return torch.cat(parts)

    def agree(self, way: Scaler) -> Tensor:
        """See `Trial.agree`; codes under a scale that is NaN, or zero, on both sides mean nothing and agree."""
        found, expected = self._keys(way)
        return found == expected

    def sample(self, agree: Tensor) -> Self:
        """See `Trial.sample`: whole blocks, always with the one that holds the tensor's maximum."""
        count, size = self.blocks.shape
        inside = agree[: count * size].view(count, size)
        picked = [mask.any(-1) for mask in by_class(self.element_classes, inside)]
        if self.answer.scales is not None:
            picked += by_class(self.scale_classes, agree[count * size : count * size + count])
        top = self.blocks.abs().amax(-1).argmax()[None]
        few = max(2, min(_BLOCKS, _ELEMENTS // size))
        kept = torch.cat([*(spread(mask, few) for mask in picked), top]).unique()
        answer, scales = self.answer, self.answer.scales
        answer = replace(answer, elements=answer.elements[kept], scales=None if scales is None else scales[kept])
        return replace(
            self,
            blocks=self.blocks[kept],
            answer=answer,
            element_classes=self.element_classes[kept],
            scale_classes=self.scale_classes[kept],
            places=tuple(self.places[index] for index in kept.tolist()),
        )

    def difference(self, index: int, way: Scaler) -> Difference:
        """See `Trial.difference`; of a scale, the input is the block's largest magnitude."""
        count, size = self.blocks.shape
        found, expected = (int(keys[index]) for keys in self._keys(way))
        name = self.names[int(self.classes[index])]
        if index >= count * size:
            block = index - count * size
            whole = block >= count
            amax = self.blocks.abs().amax() if whole else self.blocks[block].abs().amax()
            texts = (self._scale_text(expected, whole), self._scale_text(found, whole))
            place = f"scene '{self.scene}'" if whole else self.places[block]
            return Difference(_bits(amax), float(amax), *texts, name, place)
        block, element = divmod(index, size)
        amax, x = self.blocks[block].abs().amax(), self.blocks[block, element]
        texts = self._element_text(expected), self._element_text(found)
        place = f"element {element} of {self.places[block]}, whose amax is {_bits(amax)}"
        return Difference(_bits(x), float(x), *texts, name, place)

    def _keys(self, way: Scaler) -> tuple[Tensor, Tensor]:
        answer, outcome = self.answer, way.outcome(self.blocks, self._scale_format)
        if answer.scales is None:
            signed = has_negative_zero(self.cast.format)
            return value_keys(answer.elements, signed).flatten(), value_keys(outcome.dequantized, signed).flatten()
        fmt = way.element.format.value
        void = _void(answer.scales) & (_void(answer.scales) == _void(outcome.scales))
        void = void & (answer.scales.isnan() == outcome.scales.isnan())
        codes, values = code_keys(answer.elements, fmt), keys_of_values(outcome.values, fmt)
        found = [codes.masked_fill(void[:, None], 0).flatten(), value_keys(answer.scales, False)]
        expected = [values.masked_fill(void[:, None], 0).flatten(), value_keys(outcome.scales, False)]
        if answer.tensor is not None:
            found.append(value_keys(answer.tensor, False))
            ours = outcome.tensor if outcome.tensor is not None else torch.ones(1)
            expected.append(value_keys(ours.reshape(1), False))
        return torch.cat(found), torch.cat(expected)

    @property
    def _scale_format(self) -> Format | None:
        return scale_format(self.cast.scale)

    def _element_text(self, key: int) -> str:
        return _value_text(key) if self.answer.scales is None else hexadecimal(key, self.cast.format.bits)

    def _scale_text(self, key: int, whole: bool) -> str:
        value, stored = _value(key), self._scale_format
        if whole or stored is None:
            return float_bits(value)
        if value != value:
            return "NaN"
        code = stored.encode(torch.tensor([value]).float())
        held = float(stored.decode(code)) == value
        return f"0x{int(code):0{-(-stored.bits // 4)}x}" if held else float_bits(value)


def block_trial(scene: str, blocks: Tensor, answer: Answer, cast: Cast, thresholds: bool) -> BlockTrial:
    """Return the trial of one scene, its answers put into classes by what ``cast`` itself does."""
    ours = scaler(cast)
    scale = ours.infinite.value(ours.rule.value, ours.peak.value(blocks), cast.format)
    elements, scales = classes(blocks, blocks * scale.into, cast), scale_classes(blocks, cast, thresholds)
    places = tuple(f"block {index} of scene '{scene}'" for index in range(len(blocks)))
    return BlockTrial(scene, blocks, answer, cast, elements, scales, places)


def merged(trials: Sequence[BlockTrial]) -> BlockTrial:
    """Return one trial of all their blocks; only for casts whose scales do not look beyond their blocks."""
    scales = [t.answer.scales for t in trials if t.answer.scales is not None]
    elements = torch.cat([t.answer.elements for t in trials])
    return replace(
        trials[0],
        scene="",
        blocks=torch.cat([t.blocks for t in trials]),
        answer=Answer(elements, torch.cat(scales) if scales else None),
        element_classes=torch.cat([t.element_classes for t in trials]),
        scale_classes=torch.cat([t.scale_classes for t in trials]),
        places=tuple(place for t in trials for place in t.places),
    )


def _void(scales: Tensor) -> Tensor:
    return scales.isnan() | (scales == 0)


def _bits(x: Tensor) -> str:
    return f"0x{int(bits_of(x.reshape(1))):08x}"


def _value(key: int) -> float:
    return float(torch.tensor([key], dtype=torch.int64).view(torch.float64))


def _value_text(key: int) -> str:
    return float_bits(_value(key))
