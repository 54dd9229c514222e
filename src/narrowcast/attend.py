"""16-bit attention over whole sequences: which kernel runs it, and why; the door to it, as `backend` is to the rest.

cuDNN's, FlashAttention-2 and the memory-efficient kernel come with torch, FlashAttention-4 with the extra ``hopper``.
What each can do is a row of `KERNELS`. ``auto`` takes the first that can, in the order of `FASTEST`, and says what
stands against those before it; a kernel that is asked for and cannot run is refused. On a CPU nothing is chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from narrowcast.errors import InputError, nearest
from narrowcast.names import dtype_name

Capability = tuple[int, int]
_HALF = (torch.bfloat16, torch.float16)
_ANY = (*_HALF, torch.float32, torch.float64)


@dataclass(frozen=True)
class Setting:
    """What decides which kernels can run.

    Attributes:
        capability: of the CUDA device, None where there is none.
        dtype: of queries, keys and values.
        size: of a head.
        repeatable: whether the backward pass must repeat itself bit for bit.
        masked: whether there is a mask beside causality.
    """

    capability: Capability | None
    dtype: torch.dtype
    size: int
    repeatable: bool = False
    masked: bool = False

    @classmethod
    def on(
        cls, device: torch.device, dtype: torch.dtype, size: int, repeatable: bool, masked: bool = False
    ) -> "Setting":
        """Return the setting of tensors on ``device``."""
        found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        return cls(found, dtype, size, repeatable, masked)


@dataclass(frozen=True)
class Kernel:
    """What one kernel can do.

    Attributes:
        name: for people.
        backend: torch's name of it; None where it is not torch's, or torch chooses.
        first, before: capabilities that it runs on; first None where it needs no CUDA device.
        dtypes: that it takes.
        size: of the largest head; heads are multiples of 8.
        repeats: whether its backward pass can repeat itself bit for bit.
        masks: whether it takes a mask.
        groups: whether several queries may share a key head as it is.
        package: whether it is in the package of `kernels.flash4`.
    """

    name: str
    backend: SDPBackend | None = None
    first: Capability | None = None
    before: Capability = (99, 0)
    dtypes: tuple[torch.dtype, ...] = _HALF
    size: int = 1 << 16
    repeats: bool = True
    masks: bool = False
    groups: bool = True
    package: bool = False

    def against(self, s: Setting) -> str | None:
        """Return why it cannot run in ``s``, or None where it can."""
        if self.first is None:
            return None
        if s.capability is None:
            return "it needs a CUDA device"
        if not self.first <= s.capability < self.before:
            return f"it runs {self._generations}, and this is sm_{_sm(s.capability)}"
        if s.dtype not in self.dtypes:
            return f"it takes {', '.join(map(dtype_name, self.dtypes))}, not {dtype_name(s.dtype)}"
        if s.size % 8 or s.size > self.size:
            return f"it takes heads of a multiple of 8 up to {self.size}, not {s.size}"
        if s.masked and not self.masks:
            return "it takes no mask"
        if s.repeatable and not self.repeats:
            return "its backward pass does not repeat itself bit for bit"
        if self.package:
            from narrowcast.kernels.flash4 import absent

            return absent()
        return None

    @property
    def _generations(self) -> str:
        assert self.first is not None
        last = f", before sm_{_sm(self.before)}" if self.before < (99, 0) else ""
        return f"from sm_{_sm(self.first)}{last}"


KERNELS: Mapping[str, Kernel] = {
    "flash4": Kernel("FlashAttention-4", None, (9, 0), (12, 0), size=128, package=True),
    "cudnn": Kernel("cuDNN", SDPBackend.CUDNN_ATTENTION, (8, 0), size=128, repeats=False),
    "flash": Kernel("FlashAttention-2", SDPBackend.FLASH_ATTENTION, (8, 0), size=256),
    "efficient": Kernel(
        "memory-efficient attention", SDPBackend.EFFICIENT_ATTENTION, (5, 0), dtypes=_ANY[:3], masks=True, groups=False
    ),
    "math": Kernel("softmax between two products", SDPBackend.MATH, dtypes=_ANY, masks=True),
    "torch": Kernel("what torch takes by itself", dtypes=_ANY, masks=True),
}
ASKED = ("auto", *KERNELS)

#: the order that ``auto`` tries, by major capability: measured (bench/results/attention-cuda.json), forward + backward
FASTEST: Mapping[int, tuple[str, ...]] = {9: ("flash4", "cudnn", "flash", "efficient", "math")}
_UNMEASURED = ("flash", "efficient", "math")


@dataclass(frozen=True)
class Attention:
    """What will run: the name of a row of `KERNELS`, the reason, and what stands against each of the others."""

    kind: str
    why: str
    against: tuple[tuple[str, str], ...] = ()

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return KERNELS[self.kind].name

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {"kind": self.kind, "kernel": self.kernel, "why": self.why, "against": dict(self.against)}

    def __str__(self) -> str:
        others = "".join(f"; {kind}: {reason}" for kind, reason in self.against)
        return f"{self.kind} ({self.kernel}): {self.why}{others}"


def choose_attention(asked: str, setting: Setting, what: str = "attention") -> Attention:
    """Return what runs attention in ``setting``.

    Args:
        asked: one of `ASKED`.
        setting: see there.
        what: name for error messages.

    Raises InputError for an unknown name, and for a kernel that cannot run there, with the reason.
    """
    if asked not in ASKED:
        raise InputError(f"{what}: unknown {asked!r}{nearest(asked, ASKED)}")
    if asked != "auto":
        reason = KERNELS[asked].against(setting)
        if reason is not None:
            raise InputError(f"{what}: {asked} ({KERNELS[asked].name}) cannot run here: {reason}; or take 'auto'")
        return Attention(asked, "asked for")
    if setting.capability is None:
        return Attention("torch", "nothing is chosen without a CUDA device")
    order = FASTEST.get(setting.capability[0], _UNMEASURED)
    reasons = {kind: KERNELS[kind].against(setting) for kind in order}
    kind = next(kind for kind, reason in reasons.items() if reason is None)
    ahead = tuple((k, r) for k, r in reasons.items() if r is not None and order.index(k) < order.index(kind))
    measured = setting.capability[0] in FASTEST
    which = "the fastest of those that can" if measured else "the first of those that can; none was measured here"
    return Attention(kind, which, ahead)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    kind: str = "auto",
) -> Tensor:
    """Return ``softmax(scale q k^T) v`` ``[B, H, T, D]``.

    Args:
        q: ``[B, H, T, D]``; under autocast it is cast, as are ``k`` and ``v``.
        k, v: ``[B, G, S, D]``, H a multiple of G: queries of H / G heads share a key head.
        causal: whether query t sees the keys up to t alone; then T is S, and there is no mask.
        scale: of the scores, by default ``D**-0.5``.
        mask: broadcasts to ``[B, H, T, S]``: added to the scores, or bool and true where a key is seen.
        kind: one of `ASKED`. Compiled code takes the word of its caller that it can run, and chooses nothing.

    Raises InputError for shapes that do not fit, and as `choose_attention`.
    """
    _check(q, k, v, causal, mask)
    if torch.is_autocast_enabled(q.device.type):
        wide = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
    if not torch.compiler.is_compiling():
        repeatable = torch.are_deterministic_algorithms_enabled()
        kind = choose_attention(kind, Setting.on(q.device, q.dtype, q.shape[-1], repeatable, mask is not None)).kind
    if kind == "flash4":
        return _flash4(q, k, v, causal, scale)
    kernel = KERNELS[kind]
    if not kernel.groups and q.shape[1] != k.shape[1]:
        k, v = (torch.repeat_interleave(t, q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    shared = q.shape[1] != k.shape[1]
    if kernel.backend is None:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=shared)
    with sdpa_kernel(kernel.backend):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=shared)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        shapes = ", ".join(str(list(t.shape)) for t in (q, k, v))
        raise InputError(f"attention: expected q [B, H, T, D] and k, v [B, G, S, D], found {shapes}")
    if q.shape[1] % k.shape[1]:
        raise InputError(f"attention: {q.shape[1]} heads of queries cannot share {k.shape[1]} of keys evenly")
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        raise InputError(
            f"attention: causal=True takes as many queries as keys and no mask, found {q.shape[2]} and {k.shape[2]}, "
            f"{'a' if mask is not None else 'no'} mask; pass causal=False with the mask that you mean"
        )


def _flash4(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    from narrowcast.kernels.flash4 import flash4 as by  # by name: compiled code follows no import_module

    repeatable = torch.are_deterministic_algorithms_enabled()
    wanted = q.shape[-1] ** -0.5 if scale is None else scale
    return by(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal, wanted, repeatable).transpose(1, 2)


def _sm(capability: Capability) -> str:
    return f"{capability[0]}{capability[1]}"
