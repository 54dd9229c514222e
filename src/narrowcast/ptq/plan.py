"""What would become of a model, before any work: from its config and the headers of its files alone."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from narrowcast.analysis.roofline import Gpu
from narrowcast.analysis.serving import Speed, kernel, kind_of, narrow_product, served, wide_product
from narrowcast.errors import InputError
from narrowcast.io.cached import CacheSpec
from narrowcast.io.hollow import HollowModel
from narrowcast.io.quantized import LayerSpec, Layout
from narrowcast.nn.convert import KEEP_WIDE
from narrowcast.ptq.blocks import find_blocks
from narrowcast.ptq.cache import token_bytes
from narrowcast.ptq.kvcache import attention_modules
from narrowcast.ptq.part import specs_of
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.targets import Target, find_targets

_ESCAPES = 0.05  # share of the bytes meant to shrink that may stay as they are
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")


@dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
        name, kind, shape: of the parameter.
        became: ``narrow`` or ``wide``.
        why: why it stays wide; or what is special about it.
        before, after: bytes in the checkpoint and in the result, scales counted.
        cast: of the weight and, where it is narrowed, of its input.
        kernel: what multiplies it on the GPU, empty where nothing does.
        group: the first of the weights that it shares its input with, where there are several.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    became: str
    why: str
    before: int
    after: int
    cast: str = ""
    kernel: str = ""
    group: str = ""


@dataclass(frozen=True)
class Plan:
    """What would become of a model.

    Attributes:
        recipe: name of the recipe.
        rows: every parameter.
        specs: the narrow ones, as the pipeline will make them.
        gpu: name of the GPU.
        before, after: predicted speed of the model as it is (16 bits) and quantized.
        block_bytes: largest block as float32: what is in memory at a time.
        cached: bytes that one token takes in the cache of keys and values, wide and under the recipe, scales of tiles
            counted; None where the model caches nothing or something else.
        notes: what else there is to know.
    """

    recipe: str
    rows: tuple[Row, ...]
    specs: tuple[LayerSpec, ...]
    gpu: str
    before: Speed
    after: Speed
    block_bytes: int
    cached: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters in the checkpoint."""
        return sum(row.before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all parameters in the result, scales counted."""
        return sum(row.after for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        speeds = {"before": asdict(self.before), "after": asdict(self.after), "gpu": self.gpu}
        return {
            "recipe": self.recipe,
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "block_bytes": self.block_bytes,
            "cached_bytes": None if self.cached is None else list(self.cached),
            "speed": speeds,
            "notes": list(self.notes),
        }


def make_plan(source: HollowModel, recipe: PtqRecipe, layout: Layout, on: Gpu) -> Plan:
    """Return the plan; nothing but headers has been read.

    Raises InputError where nothing is to be narrowed, a tile or a rotation does not divide a matrix, the layout cannot
    hold a layer, or more than 5 % of the bytes that the recipe means to shrink would not shrink.
    """
    targets, kept = find_targets(source.model, recipe.keep_wide)
    specs = specs_of(targets, recipe)
    for spec in specs:
        _check(spec, layout)
    sizes = Counter(spec.group for spec in specs)
    attention = attention_modules(source.model)
    cache = [recipe.kv.spec(name) for name in attention] if recipe.kv is not None else []
    _check_cache(source, recipe, cache, layout)
    rows = {spec.name: _narrow_row(source, spec, sizes[spec.group] > 1) for spec in specs}
    for one in kept:
        name = source.places.canonical(one.name) or one.name
        tied = one.name != name
        absent = tied or one.why.startswith("tied to")
        size, kept_size = (0, 0) if absent else (source.stored_bytes(name), source.kept_bytes(name))
        multiplies = "embed" not in one.name and len(one.shape) == 2 and one.kind != "Embedding"
        why = f"{one.why}; stored once, as {name}" if tied else one.why
        runs = kernel("wide") if multiplies else ""
        rows[one.name] = Row(one.name, one.kind, one.shape, "wide", why, size, kept_size, kernel=runs)
    for name, parameter in source.places.names.items():
        if name not in rows:
            sizes_of = source.stored_bytes(name), source.kept_bytes(name)
            rows[name] = Row(name, "vector", tuple(parameter.shape), "wide", "a vector, no matrix", *sizes_of)
    place = {name: float(number) for number, name in enumerate(source.places.names)}
    sites = _attention(source, recipe, attention, place)
    place |= {row.name: number + 0.5 for row, number in sites}
    rows |= {row.name: row for row, _ in sites}
    ordered = tuple(sorted(rows.values(), key=lambda r: place[source.places.canonical(r.name) or r.name]))
    _check_bytes(ordered)
    active = _active(source.settings)
    wide = [
        wide_product((row.shape[0], row.shape[1]))
        for row in ordered
        if row.kernel and len(row.shape) == 2 and row.became == "wide"
    ]
    met = [min(active or s.count, s.count) for s in specs]
    narrow = [
        narrow_product(s.shape, s.nbytes, s.weight, s.activation, s.count, m) for s, m in zip(specs, met, strict=True)
    ]
    unquantized = [wide_product(s.shape, s.count, m) for s, m in zip(specs, met, strict=True)]
    return Plan(
        recipe.name, ordered, tuple(specs), on.name, served([*unquantized, *wide], on), served([*narrow, *wide], on),
        _block_bytes(source), token_bytes(source.model, recipe.kv, _dtype_size(source, targets)),
        (*_notes(source, recipe, specs), *layout.notes(specs, cache)),
    )  # fmt: skip


def _check(spec: LayerSpec, layout: Layout) -> None:
    rows, columns = spec.shape
    what = f"weight {spec.name} of shape {rows} x {columns}"
    if spec.transform is not None and columns % spec.transform.size:
        raise InputError(
            f"{what}: its K = {columns} is no multiple of the rotation's {spec.transform.size}; "
            f"leave it wide with --keep-wide '{_pattern(spec.module)}' or take a recipe without a rotation"
        )
    for which, one, shape in (("cast", spec.weight, spec.shape), ("input cast", spec.activation, (1, columns))):
        if one is not None:
            try:
                one.padded_shape(shape, f"weight {spec.name}")
            except InputError as error:
                raise InputError(f"{error} ({which} {one})") from None
    refusal = layout.refusal(spec)
    if refusal:
        raise InputError(
            f"{what}: layout {layout.name} cannot hold it: {refusal}; take --layout narrowcast, or leave it wide with "
            f"--keep-wide '{_pattern(spec.module)}'"
        )


def _pattern(module: str) -> str:
    return f"*{module.rpartition('.')[2]}"


def _narrow_row(source: HollowModel, spec: LayerSpec, tied: bool) -> Row:
    before = source.stored_bytes(spec.name)
    alike = "alike" if spec.activation == spec.weight else spec.activation
    casts = f"{spec.weight}" + (f", input {alike}" if spec.activation else "")
    casts += f", both rotated by {spec.transform}" if spec.transform else ""
    padded = spec.weight.padded_shape(spec.shape, spec.name)
    notes = [f"{spec.count} experts, each with scales of its own"] if spec.kind == "experts" else []
    notes += [f"padded to {padded[0]} x {padded[1]}: the tile does not divide it"] if padded != spec.shape else []
    return Row(
        spec.name, spec.kind, spec.stored, "narrow", "; ".join(notes), before, spec.nbytes, casts,
        kernel(kind_of(spec.weight, spec.activation)),
        spec.group if tied else "",
    )  # fmt: skip


def _check_cache(source: HollowModel, recipe: PtqRecipe, cache: list[CacheSpec], layout: Layout) -> None:
    """Refuse a narrow cache where the model has none, a tile does not divide a head, or the layout cannot hold it."""
    if recipe.kv is None:
        return
    if not cache or not getattr(source.model, "can_generate", lambda: False)():
        kind = source.settings.get("model_type")
        raise InputError(f"recipe {recipe.name} narrows cached keys and values, and model_type {kind!r} caches none")
    if (refusal := layout.cache_refusal(cache[0])) != "":
        raise InputError(f"layout {layout.name} cannot hold {cache[0].module}: {refusal}; take --layout narrowcast")
    token_bytes(source.model, recipe.kv, 1)  # raises where a tile does not divide the head


def _dtype_size(source: HollowModel, targets: list[Target]) -> int:
    """Return the bytes of a number of the model as it will be loaded: that of its first weight to be narrowed."""
    return source.kept_dtype(targets[0].name).itemsize


def _attention(
    source: HollowModel, recipe: PtqRecipe, modules: dict[str, nn.Module], place: dict[str, float]
) -> list[tuple[Row, float]]:
    """Return a row for the products of every attention module, which have no weights, and its place behind them."""
    why = "no weights: q k^T and p v stay in 16 bits" + (f", cached {recipe.kv}" if recipe.kv else "")
    found = []
    for name, module in modules.items():
        own = [place[c] for n, _ in module.named_parameters() if (c := source.places.canonical(f"{name}.{n}"))]
        row = Row(name, "attention", (), "wide", why, 0, 0, kernel="attention in 16 bits")
        found.append((row, max(own, default=0.0)))
    return found


def _check_bytes(rows: tuple[Row, ...]) -> None:
    """Refuse where weights that nobody asked to keep stay as large as they are."""
    meant = [row for row in rows if row.became == "narrow" or _escaped(row)]
    total = sum(row.before for row in meant)
    stuck = [row for row in meant if row.after >= row.before]
    share = sum(row.before for row in stuck) / max(total, 1)
    if share > _ESCAPES:
        largest = max(stuck, key=lambda row: row.before)
        why = largest.why or f"as {largest.cast} it takes {largest.after:,} bytes instead of {largest.before:,}"
        raise InputError(
            f"{100 * share:.0f} % of the bytes meant to shrink would not, first {largest.name} ({why}); allowed are "
            f"{100 * _ESCAPES:.0f} %: take another recipe, or leave it wide on purpose with --keep-wide"
        )


def _escaped(row: Row) -> bool:
    return row.became == "wide" and "holds no matrix of a kind that is known" in row.why


def _active(settings: dict[str, Any]) -> int | None:
    found = next((settings[key] for key in _EXPERTS_PER_TOKEN if isinstance(settings.get(key), int)), None)
    return None if found is None else int(found)


def _block_bytes(source: HollowModel) -> int:
    """Return the float32 bytes of the largest block."""
    _, blocks = find_blocks(source.model)
    return max(4 * sum(p.numel() for p in block.parameters()) for block in blocks)


def _notes(source: HollowModel, recipe: PtqRecipe, specs: list[LayerSpec]) -> list[str]:
    names = [name for name, _ in source.model.named_modules()]
    notes = []
    for pattern in recipe.keep_wide:
        regular = re.compile(pattern.replace(".", r"\.").replace("*", ".*"))
        if pattern in KEEP_WIDE and not any(regular.fullmatch(name) for name in names):
            notes.append(f"the rule {pattern!r} (stay wide) matches nothing in this model")
    if not source.known:
        kind = source.settings.get("model_type")
        notes.append(
            f"model_type {kind!r} is unknown to transformers: every two-axis tensor called 'weight' counts as a linear "
            f"layer ({len(specs)} are), unless its name says embedding; nothing can be run, so nothing is calibrated"
        )
    return notes


def short(text: str) -> str:
    """Return the spelling of a cast without what goes without saying."""
    return text.replace("/nearest-even", "").replace("+pad", "")


def folded(plan: Plan) -> Plan:
    """Return the plan with like rows of the blocks folded into one, its number a star and its bytes summed."""
    merged: dict[tuple[object, ...], Row] = {}
    counts: Counter[tuple[object, ...]] = Counter()
    for row in plan.rows:
        name = re.sub(r"\.\d+\.", ".*.", row.name)
        key = (name, row.kind, row.shape, row.became, row.why.split(" ")[0], row.cast)
        counts[key] += 1
        old = merged.get(key)
        group = re.sub(r"\.\d+\.", ".*.", row.group)
        before, after = (row.before, row.after) if old is None else (old.before + row.before, old.after + row.after)
        merged[key] = replace(row, name=name, group=group, before=before, after=after)
    rows = tuple(replace(row, name=f"{row.name} (x{counts[key]})" if counts[key] > 1 else row.name)
                 for key, row in merged.items())  # fmt: skip
    return replace(plan, rows=rows)
