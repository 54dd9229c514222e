"""Optimizers by name: an update rule and how it keeps weight and moments. A new one is one row here.

What is *not* narrowed: vectors (norms, biases), whose bytes do not count and whose errors do; see `nc.optimizer`.
"""

from dataclasses import dataclass
from functools import lru_cache

from narrowcast.errors import InputError, nearest
from narrowcast.optim.rules import ADAMW, Rule
from narrowcast.storage import Storage, storage


@dataclass(frozen=True)
class Method:
    """How an optimizer keeps what it keeps.

    Attributes:
        name: as in `nc.optimizer(model, name)`.
        weight: storage of the master weight.
        moments: storage of each of the rule's moments, in its order.
        summary: one line.
        paper: where it comes from.
        rule: the update.
    """

    name: str
    weight: Storage
    moments: tuple[Storage, ...]
    summary: str = "spelled out"
    paper: str = ""
    rule: Rule = ADAMW

    def __post_init__(self) -> None:
        if len(self.moments) != len(self.rule.moments):
            raise InputError(f"optimizer {self.name}: {self.rule.name} keeps {', '.join(self.rule.moments)}")

    @property
    def storages(self) -> dict[str, Storage]:
        """All storages by name, the weight's first."""
        return {"weight": self.weight, **dict(zip(self.rule.moments, self.moments, strict=True))}

    def bytes_per_parameter(self, count: int) -> float:
        """Return the bytes of master weight and moments for each of ``count`` parameters of a tensor."""
        return sum(s.bits_per_element(count) for s in self.storages.values()) / 8

    def __str__(self) -> str:
        return self.name


def _row(name: str, weight: str, m: str, v: str, summary: str, paper: str) -> Method:
    return Method(name, storage(weight), (storage(m), storage(v)), summary, paper)


_FP16 = "float16/1x128+pad/e8m0-ceil"
_LOSHCHILOV = "Loshchilov and Hutter 2019, Decoupled weight decay regularization"
_ZAMIRAI = "Zamirai et al. 2020, Revisiting BFloat16 training"
_FISHMAN = "Fishman et al. 2025, Scaling FP8 training to trillion-token LLMs, section 5"
_SR = "bfloat16/tensor/one/stochastic"


@lru_cache(maxsize=1)
def _rows() -> tuple[Method, ...]:
    return (
        _row("fp32-adam", "float32", "float32", "float32", "the reference: everything float32", _LOSHCHILOV),
        _row("bf16-adam-kahan", "bfloat16x2", "bfloat16", _SR,
             "bfloat16 weight with Kahan's compensation; v is dithered: its decay is less than half a step", _ZAMIRAI),
        _row("bf16-adam-sr", _SR, _SR, _SR, "bfloat16 throughout, stochastically rounded", _ZAMIRAI),
        _row("fp8-adam", "float16/tensor/fp32", "e4m3fn/tensor/fp32", "e5m2/tensor/fp32",
             "FP8 moments and an FP16 master weight, one scale a tensor", _FISHMAN),
        _row("fp8-adam-blocks", _FP16, "e4m3fn/1x128+pad/fp32", "e5m2/1x128+pad/fp32",
             "FP8 moments and an FP16 master weight, a scale for every 128 elements: one pass over memory", _FISHMAN),
        _row("fp8-adam-expanded", _FP16, "e4m3fn/1x128+pad/expanded", "e4m3fn/1x128+pad/expanded",
             "COAT: e4m3fn moments after dynamic range expansion", "Xi et al. 2025, COAT, section 4"),
    )  # fmt: skip


def optimizers() -> dict[str, Method]:
    """Return every optimizer by name, from the widest to the narrowest."""
    return {row.name: row for row in _rows()}


def method(name: str | Method) -> Method:
    """Return the optimizer called ``name``, or spelled out: ``"weight=float32 m=bfloat16 v=e5m2/tensor/fp32"``.

    Raises InputError with the nearest names.
    """
    if isinstance(name, Method):
        return name
    known = optimizers()
    if name in known:
        return known[name]
    if "=" not in name:
        raise InputError(f"unknown optimizer {name!r}{nearest(name, known)}")
    return _spelled(name)


def _spelled(text: str) -> Method:
    parts = dict(part.partition("=")[::2] for part in text.split())
    wanted = ("weight", *ADAMW.moments)
    if set(parts) != set(wanted):
        raise InputError(f"optimizer {text!r}: expected {' '.join(f'{name}=STORAGE' for name in wanted)}")
    return Method(text, storage(parts["weight"]), tuple(storage(parts[name]) for name in ADAMW.moments))
