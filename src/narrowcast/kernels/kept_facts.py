"""What kernels must know of a `Storage`: frozen facts, and why there is no kernel. No Triton here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from narrowcast.formats import Minifloat, rounding
from narrowcast.kernels.elements import FloatFacts, element_of
from narrowcast.kernels.facts import RotationFacts, RoundingFacts, ScaleFacts, Way, rounding_of, scale_facts, way_of
from narrowcast.scaling import PowerOfTwo, Wide
from narrowcast.storage import Coded, Expanded, Parts, Storage
from narrowcast.storage.expansion import SIXTEENTHS

GROUP = 128
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_RULES = ("adamw",)


@dataclass(frozen=True)
class KeptFacts:
    """One storage.

    Attributes:
        kind: ``wide`` (float32), ``bare`` (bfloat16 without a scale), ``scaled``, ``expanded`` or ``parts``.
        codes: type of the codes in memory: ``float32``, ``bfloat16``, ``float16`` or ``uint8``.
        carried: whether the parameter itself holds the codes (or the high part).
        element, rounding, scale, way: of the codes, as in `kernels.facts`.
        by_tensor: whether one scale serves the tensor.
        sixteenths: 16 times the binades that an expanded group is stretched to.
        log2_max: log2 of the format's largest value, as the definition has it.
    """

    kind: str
    codes: str
    carried: bool
    element: FloatFacts | None = None
    rounding: RoundingFacts | None = None
    scale: ScaleFacts | None = None
    way: Way | None = None
    by_tensor: bool = False
    sixteenths: float = 0.0
    log2_max: float = 0.0

    @property
    def grouped(self) -> bool:
        """Whether codes are padded to whole groups, each with a scale of its own."""
        return self.kind == "expanded" or (self.kind == "scaled" and not self.by_tensor)

    @property
    def byte_shift(self) -> int:
        """From the leading bits of a word to a float32 whose exponent field is an 8-bit code's: by how many down."""
        assert self.element is not None
        return 8 - self.element.exponent

    @property
    def byte_mask(self) -> int:
        """Where sign, exponent and mantissa stand then."""
        assert self.element is not None
        return -(1 << 31) | ((1 << (self.element.exponent + self.element.mantissa)) - 1) << self.element.shift

    @property
    def random(self) -> bool:
        """Whether storing draws random bits."""
        return self.rounding is not None and self.rounding.random


def kept_facts(storage: Storage, parameter: torch.dtype | None) -> KeptFacts:
    """Return the facts of a storage that `reason` has nothing against; ``parameter``: its dtype, for a weight's."""
    carried = parameter is not None and bool(storage.carried(parameter))
    if isinstance(storage, Parts):
        return KeptFacts("parts", "bfloat16", carried)
    if isinstance(storage, Expanded):
        element = _float_facts(storage.format)
        nearest = rounding_of(rounding("nearest-even"))
        way = Way("adder", False, False, False)
        sixteenths = SIXTEENTHS * storage.binades
        return KeptFacts("expanded", "uint8", carried, element, nearest, None, way, False, sixteenths, storage.log2_max)
    assert isinstance(storage, Coded)
    cast = storage.cast
    codes = _TYPES[storage.dtype] if storage.dtype is not None else "uint8"
    if cast.format.name == "float32":
        return KeptFacts("wide", codes, carried)
    element, mode, scale = _float_facts(cast.format), rounding_of(cast.rounding), scale_facts(cast.scale, cast.format)
    if scale.kind == "one":
        return KeptFacts("bare", codes, carried, element, mode, scale)
    way = replace(way_of(element, mode, scale, RotationFacts(1, "none", 1.0), False), halves=False)
    return KeptFacts("scaled", codes, carried, element, mode, scale, way, cast.tile.is_tensor)


def _float_facts(fmt: object) -> FloatFacts:
    assert isinstance(fmt, Minifloat)
    facts = element_of(fmt, rounding("nearest-even"))
    assert isinstance(facts, FloatFacts)
    return facts


def reason(rule: str, storages: Mapping[str, Storage], p: Tensor, gradient: Tensor | None) -> str | None:
    """Return why no kernel makes a step of this rule with these storages, or None where one does."""
    if rule not in _RULES:
        return f"no kernel for the rule {rule}"
    for what, t in (("parameters", p), ("gradients", gradient)):
        if t is not None and t.dtype not in _TYPES:
            return f"kernels take {what} of float32, bfloat16 and float16, not {t.dtype}"
    if isinstance(storages["weight"], Expanded):
        return "no kernel keeps a weight expanded"
    return next((why for storage in storages.values() if (why := _no_kernel(storage))), None)


def _no_kernel(storage: Storage) -> str | None:
    found = f"no kernel for the storage {storage}"
    if isinstance(storage, Parts):
        return None if str(storage) == "bfloat16x2" else found
    if isinstance(storage, Expanded):
        known = storage.format.name in ("e4m3fn", "e5m2") and storage.group == GROUP
        return None if known else found
    if not isinstance(storage, Coded):
        return found
    cast, name = storage.cast, storage.cast.format.name
    if name in ("float32", "bfloat16"):
        modes = ("nearest-even",) if name == "float32" else ("nearest-even", "stochastic")
        bare = not storage.cast.scale.bits and str(cast.rounding) in modes
        return None if bare else found
    tiled = cast.tile.is_tensor or cast.tile.cols == GROUP
    scaled = isinstance(cast.scale, Wide | PowerOfTwo)
    modes = ("nearest-even",) if name == "float16" else ("nearest-even", "stochastic")
    known = name in ("float16", "e4m3fn", "e5m2", "e4m3") and str(cast.rounding) in modes
    return None if tiled and scaled and known else found
