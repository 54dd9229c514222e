"""Swap the linear layers of a model, by rule, and say what became of every matmul site."""

import fnmatch
from dataclasses import asdict, dataclass, field

from torch import nn

from narrowcast.backend import Choice
from narrowcast.errors import InputError
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import GEMMS, choices
from narrowcast.nn.spec import LinearSpec

#: what stays wide unless a caller says otherwise: the output head and everything that embeds
KEEP_WIDE = ("*lm_head", "*embed*")


@dataclass(frozen=True)
class Site:
    """One place of a model that multiplies matrices.

    Attributes:
        name: module (or parameter) name.
        kind: ``Linear``, ``Embedding``, ``experts`` (3-D weights), ``Conv2d``, ...
        shape: of the weight.
        became: ``narrow`` or ``wide``.
        backend, kernel: what runs it; where the three gemms differ, the one of them that is emulated.
        why: why it stayed wide, or why it is emulated.
        gemms: what runs each of the three gemms, and why not a kernel; empty where it stayed wide.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    became: str
    backend: str
    kernel: str
    why: str
    gemms: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Conversion:
    """The table that `convert` returns: every matmul site and what became of it."""

    recipe: str
    rows: list[Site] = field(default_factory=list)

    @property
    def narrow(self) -> list[Site]:
        """The converted sites."""
        return [row for row in self.rows if row.became == "narrow"]

    def to_json(self) -> list[dict[str, object]]:
        """Return the rows as plain dictionaries."""
        return [{**asdict(row), "shape": list(row.shape)} for row in self.rows]

    def table(self) -> str:
        """Return the rows as aligned plain text, one line a site."""
        head = ("site", "kind", "shape", "became", "backend", "why")
        lines = [head] + [(r.name, r.kind, "x".join(map(str, r.shape)), r.became, r.backend, r.why) for r in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def __str__(self) -> str:
        return self.table()


def convert_linears(
    model: nn.Module,
    spec: LinearSpec | None,
    recipe: str,
    *,
    backend: str = "auto",
    seed: int = 0,
    keep_wide: tuple[str, ...] = KEEP_WIDE,
    only: tuple[str, ...] = (),
) -> Conversion:
    """Replace `torch.nn.Linear` modules of ``model`` in place and return the table of all matmul sites.

    Args:
        model: any module; parameters are kept, not copied.
        spec: the three gemms, or None to leave everything as it is.
        recipe: name for the table.
        backend: ``auto``, ``emulate`` or ``native`` (raises where native is impossible).
        seed: key of the random bits.
        keep_wide: glob patterns of module names left wide. Patterns given beyond the default must match something.
        only: glob patterns; if any, a layer must match one of them to be converted.

    A layer that stands in several places is converted once and stays shared; each place has its row.

    Raises InputError for a pattern that matches no module, for a model with no linear layer or that is one itself, and
    for a model that was converted before. Nothing is changed when it raises.
    """
    if isinstance(model, nn.Linear):
        raise InputError("the model is itself a linear layer, which cannot be swapped in place; wrap it in Sequential")
    names = dict(model.named_modules(remove_duplicate=False))
    for pattern in (*(p for p in keep_wide if p not in KEEP_WIDE), *only):
        if not any(fnmatch.fnmatch(name, pattern) for name in names):
            raise InputError(f"pattern {pattern!r} matches no module of the model; see model.named_modules()")
    done = [name for name, module in names.items() if isinstance(module, Linear)]
    if done:
        raise InputError(f"layer {done[0]!r} is converted already; convert a fresh copy of the model")
    report = Conversion(recipe)
    swaps: list[tuple[str, nn.Linear]] = []
    for name, module in names.items():
        report.rows.extend(_sites(name, module, spec, backend, keep_wide, only, swaps))
    if spec is not None and not swaps:
        kept = ", ".join(keep_wide)
        raise InputError(f"recipe {recipe}: no linear layer of the model is to be converted (kept wide: {kept})")
    made: dict[nn.Linear, Linear] = {}
    for name, module in swaps:
        parent, _, child = name.rpartition(".")
        assert spec is not None
        if module not in made:
            made[module] = Linear(module, spec, name, seed, backend)
        setattr(model.get_submodule(parent), child, made[module])
    return report


def _sites(
    name: str,
    module: nn.Module,
    spec: LinearSpec | None,
    backend: str,
    keep_wide: tuple[str, ...],
    only: tuple[str, ...],
    swaps: list[tuple[str, nn.Linear]],
) -> list[Site]:
    """Return the rows of one module, and note the swap if it is to be converted."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        shape = tuple(module.weight.shape)
        why = _why_wide(name, module, spec, keep_wide, only)
        if why is not None or spec is None:
            return [Site(name, kind, shape, "wide", "torch", "torch.nn.functional.linear", why or "")]
        swaps.append((name, module))
        made = choices(spec, backend, module.weight.device, f"layer {name!r}")
        return [_narrow_site(name, kind, shape, dict(zip(GEMMS, made, strict=True)))]
    if isinstance(module, nn.Embedding):
        return [Site(name, kind, tuple(module.weight.shape), "wide", "torch", "gather", "a table look-up, no product")]
    if isinstance(module, nn.modules.conv._ConvNd | nn.Bilinear | nn.MultiheadAttention):
        shape = next((tuple(p.shape) for p in module.parameters(recurse=False)), ())
        return [Site(name, kind, shape, "wide", "torch", kind, "only Linear layers are converted in this version")]
    # Products hidden in bare parameters: the fused weights of a mixture of experts, or a matrix of a custom module.
    prefix = f"{name}." if name else ""
    return [
        Site(prefix + p, "experts" if w.dim() == 3 else "parameter", tuple(w.shape), "wide", "torch", kind, reason)
        for p, w in module.named_parameters(recurse=False)
        if w.dim() >= 2
        for reason in (f"a {w.dim()}-D weight of {kind}: not a Linear layer, left wide",)
    ]


def _why_wide(
    name: str, module: nn.Linear, spec: LinearSpec | None, keep_wide: tuple[str, ...], only: tuple[str, ...]
) -> str | None:
    """Return why a linear layer stays wide, or None where it is to be converted."""
    if spec is None:
        return "the recipe leaves linear layers alone"
    for pattern in keep_wide:
        if fnmatch.fnmatch(name, pattern):
            return f"kept wide by rule {pattern!r}"
    if only and not any(fnmatch.fnmatch(name, pattern) for pattern in only):
        return f"not among {', '.join(only)}"
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} is a subclass of Linear with behaviour of its own"
    return None


def _narrow_site(name: str, kind: str, shape: tuple[int, ...], made: dict[str, Choice]) -> Site:
    """Return the row of a converted layer: one reason where all gemms share it, else each emulated gemm's."""
    emulated = {gemm: c for gemm, c in made.items() if c.backend == "emulate"}
    shown = next(iter(emulated.values()), made["fwd"])
    reasons = {c.why for c in emulated.values()}
    why = (
        shown.why
        if len(reasons) == 1 and len(emulated) == len(made)
        else "; ".join(f"{gemm}: {c.why}" for gemm, c in emulated.items())
    )
    gemms = {gemm: {"backend": c.backend, "kernel": c.kernel, "why": c.why} for gemm, c in made.items()}
    backend = "native" if not emulated else "emulate" if len(emulated) == len(made) else "mixed"
    return Site(name, kind, shape, "narrow", backend, shown.kernel, why, gemms)
