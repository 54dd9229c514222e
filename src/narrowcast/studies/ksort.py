"""Study 50: keys in block floating point, their channels sorted beforehand so that outliers share blocks (K-sort)."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.loss import sqnr_db
from narrowcast.metrics import mean_loss, perplexity
from narrowcast.models.attention import repeated, set_layer_attention
from narrowcast.ptq.kvcache import CacheCasts, key_orders, narrow_cache
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import recipe
from narrowcast.studies.quantized_language import judge, weights_changed
from narrowcast.studies.small_training import prepared
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

_WIDTH, _BLOCKS = 128, (32, 64, 128)  # the paper's
_SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 1, "num_key_value_heads": 1}
_PLANTED, _FACTOR = 4, 8.0  # pairs of channels in each head, and how much larger their keys are
_ORDERS = ("as they are", "sorted", "sorted in pairs")


def bfp(block: int) -> Cast:
    """Return BFP12: 4-bit integers (from -8) under a power of two for each block of a head's channels."""
    return cast(f"int4_full/1x{block}/e8m0")


@dataclass(frozen=True)
class Subject:
    """A model, text that judges it, and the order of its key channels by name."""

    model: nn.Module
    batches: list[Tensor]

    def orders(self, name: str) -> dict[str, Tensor]:
        """Return the order of the channels of every head."""
        return {} if name == _ORDERS[0] else key_orders(self.model, pairs=name == _ORDERS[2])

    def perplexity(self, casts: CacheCasts | None) -> float:
        """Return the perplexity of the text where the cache holds ``casts``."""
        changed = copy.deepcopy(self.model)
        if casts is not None:
            narrow_cache(changed, casts)
        return perplexity(mean_loss(changed, self.batches))


def run(setting: Setting) -> Outcome:
    """Measure."""
    result = prepared(recipe("fp32"), setting, setting.seed, steps=1000, lr=2e-3, shape=_SHAPE).run(None)
    batches = result.tokens.validation_batches(1 if setting.quick else 16, 8, 64)
    plain = Subject(result.model.eval(), batches)
    outlying = Subject(planted(plain.model), batches)
    found: dict[tuple[str, int, str], tuple[float, float]] = {}
    wide = {}
    for name, subject in (("as trained", plain), ("outliers planted", outlying)):
        wide[name] = subject.perplexity(None)
        for block in _BLOCKS:
            for order in _ORDERS:
                found[name, block, order] = _measured(subject, block, order)
                setting.note(
                    f"{name}, blocks of {block}, {order}: {found[name, block, order][0]:.4f} (wide {wide[name]:.4f})"
                )
    caches = _caches(setting)
    checks = [*_golden(plain, outlying), *_claims(wide, found), *_cache_checks(caches)]
    return Outcome(tuple(checks), (_table(wide, found), _cache_table(caches)), (_plot(wide, found),), _NOTES)


def planted(model: nn.Module) -> nn.Module:
    """Return a copy with outliers in some pairs of key channels, and queries as much smaller: the same function."""
    g = torch.Generator().manual_seed(5)
    half = _WIDTH // 2
    factors: dict[str, Tensor] = {}

    def change(name: str, w: Tensor) -> Tensor:
        if "k_proj" not in name and "q_proj" not in name:
            return w
        key = name.replace("q_proj", "k_proj")
        if key not in factors:
            one = torch.ones(w.shape[0] // _WIDTH, half)
            for row in one:
                row[torch.randperm(half, generator=g)[:_PLANTED]] = _FACTOR
            factors[key] = torch.cat([one, one], 1).flatten()
        factor = factors[key][:, None]
        return w * factor if "k_proj" in name else w / factor

    return weights_changed(model, change)


def _measured(subject: Subject, block: int, order: str) -> tuple[float, float]:
    """Return (perplexity, SQNR in dB of the attention's scores)."""
    orders = subject.orders(order)
    return subject.perplexity(CacheCasts(key=bfp(block), order=orders)), _score_sqnr(subject, block, orders)


@torch.no_grad()
def _score_sqnr(subject: Subject, block: int, orders: dict[str, Tensor]) -> float:
    """Return the SQNR of all scores of the first batch, keys narrowed in ``orders``, each layer on wide inputs."""
    changed = copy.deepcopy(subject.model)
    names = {module: name for name, module in changed.named_modules()}
    wide: list[Tensor] = []
    narrow: list[Tensor] = []

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        order = orders.get(names[module], torch.arange(_WIDTH).expand(key.shape[1], -1))
        index = order[None, :, None].expand_as(key)
        stored = torch.empty_like(key).scatter_(-1, index, bfp(block).apply(key.gather(-1, index)))
        whole, values = repeated(query, key, value)
        wide.append((query @ whole.mT).flatten())
        narrow.append((query @ repeated(query, stored, value)[0].mT).flatten())
        return nn.functional.scaled_dot_product_attention(query, whole, values, attn_mask=mask, scale=scale)

    set_layer_attention(changed, attend)
    changed(input_ids=subject.batches[0][:, :-1], use_cache=False)
    return sqnr_db(torch.cat(wide), torch.cat(narrow)) or 0.0


# --- golden checks ---


def _golden(plain: Subject, outlying: Subject) -> list[Check]:
    four = cast("int4_full/1x4/e8m0")
    one = four.apply(torch.tensor([[1.0, 0.3, -0.26, 1.9], [8.0, 0.3, 0.3, 0.3]])).tolist()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 32, generator=g)
    settled = bfp(32).settle(x)
    off = ((settled.apply(x) - x).abs() / settled.factors()[1][0]).where(
        x < settled.factors()[1][0] * 7.5, torch.zeros(())
    )
    ids = plain.batches[0][:, :-1]
    with torch.no_grad():
        wide = plain.model(input_ids=ids, use_cache=False).logits
        same = outlying.model(input_ids=ids, use_cache=False).logits
        turned = copy.deepcopy(outlying.model)
        narrow_cache(turned, CacheCasts(order=key_orders(turned)))
        sorted_ = turned(input_ids=ids, use_cache=False).logits
    scale = float(wide.abs().max())
    return [
        equal("blocks of the paper", str(one), "[[1.0, 0.25, -0.25, 1.75], [8.0, 0.0, 0.0, 0.0]]", claim=False),
        at_most("largest error in steps, where nothing saturates", float(off.max()), 0.5 + 1e-6, claim=False),
        at_most(
            "planting outliers: logits move by, share of the largest",
            float((same - wide).abs().max()) / scale,
            1e-4,
            claim=False,
        ),
        at_most(
            "sorting without a cast: logits move by, share of the largest",
            float((sorted_ - same).abs().max()) / scale,
            1e-4,
            claim=False,
        ),
        within(
            "16-bit keys over BFP12 in blocks of 64, size",
            16 / bfp(64).bits_per_element((64, 64)),
            3.88,
            0.005,
            claim=False,
        ),
    ]


# --- the claim ---


def _claims(wide: dict[str, float], found: dict[tuple[str, int, str], tuple[float, float]]) -> list[Check]:
    name = "outliers planted"
    before, after = found[name, 32, _ORDERS[0]], found[name, 32, _ORDERS[1]]
    whole = [found[name, _WIDTH, order][0] for order in _ORDERS]
    share = (before[0] - after[0]) / (before[0] - wide[name])
    trained_gap = found["as trained", 32, _ORDERS[0]][0] - found["as trained", 32, _ORDERS[1]][0]
    return [
        at_least("outliers planted, blocks of 32: share of the perplexity lost that sorting wins back", share, 0.5),
        at_least("outliers planted, blocks of 32: dB of the scores that sorting wins", after[1] - before[1], 3.0),
        at_most("a block as wide as the head: perplexities of all orders apart", max(whole) - min(whole), 1e-4),
        at_least("as trained, blocks of 32: perplexity that sorting wins", trained_gap, 0.0),
        at_most("outliers planted, sorted, blocks of 32: perplexity lost, share", after[0] / wide[name] - 1, 0.01),
    ]


def _caches(setting: Setting) -> dict[str, tuple[float, float]]:
    """Return, for stories260K by what its cache holds, perplexity and bits per number."""
    j = judge(setting)
    subject = Subject(j.model, j.stories.batches)
    width = 8
    rows = {"float32": (subject.perplexity(None), 32.0)}
    for spelling in ("e4m3fn/row/float16", "int8/row/float16", "int4/row/float16", "int4/row/float16-signs", "nf4/row/float16-signs",
                     "int4_full/1x8/e8m0", "e2m1fn/1x8/e8m0"):  # fmt: skip
        c = cast(spelling)
        rows[spelling] = (subject.perplexity(CacheCasts(c, c)), c.bits_per_element((width, width)))
    return rows


def _cache_checks(caches: dict[str, tuple[float, float]]) -> list[Check]:
    wide = caches["float32"][0]
    best = min(v for name, (v, _) in caches.items() if name.startswith(("int4", "nf4", "e2m1")))
    return [
        at_most(
            "stories260K, keys and values in INT8: perplexity lost, share",
            caches["int8/row/float16"][0] / wide - 1,
            0.01,
        ),
        at_most("stories260K, keys and values in the best 4 bits: perplexity lost, share", best / wide - 1, 0.01),
    ]


def _table(wide: dict[str, float], found: dict[tuple[str, int, str], tuple[float, float]]) -> dict[str, Any]:
    rows = [[n, b, o, round(p, 4), round(p / wide[n] - 1, 5), round(db, 2)] for (n, b, o), (p, db) in found.items()]
    columns = ["model", "block", "channels", "perplexity", "share lost", "SQNR of the scores, dB"]
    texts = ", ".join(f"{n} {v:.4f}" for n, v in wide.items())
    return {"title": f"Keys in BFP12, heads of {_WIDTH} channels (wide: {texts})", "columns": columns, "rows": rows}


def _cache_table(caches: dict[str, tuple[float, float]]) -> dict[str, Any]:
    rows = [[n, round(v, 4), round(b, 2)] for n, (v, b) in caches.items()]
    return {
        "title": "stories260K: keys and values, heads of 8 channels",
        "columns": ["cast", "perplexity", "bits per number"],
        "rows": rows,
    }


def _plot(wide: dict[str, float], found: dict[tuple[str, int, str], tuple[float, float]]) -> dict[str, Any]:
    series = [
        {
            "name": f"{n}, {o}",
            "x": [str(b) for b in _BLOCKS],
            "y": [found[n, b, o][0] - wide[n] for b in _BLOCKS],
            "mode": "lines+markers",
        }
        for n in wide
        for o in _ORDERS
    ]
    return {
        "title": "Perplexity lost by keys in BFP12",
        "series": series,
        "x": "channels per block",
        "y": "perplexity above wide",
    }


_NOTES = (
    "A Llama of half a million parameters with one head of 128 channels in each layer, 1000 steps on tiny Shakespeare. Outliers: four pairs of "
    "the head's channels get keys eight times as large and queries eight times as small, which changes nothing else. (With heads of 64 channels, where half of a head shares its blocks with the outliers even when sorted, sorting won back 0.25 of the loss.)",
    "Sorted: every channel by the norm of its row in the key projection, in the order that a rotary embedding with a table per channel "
    "can serve. In pairs: the two channels that the embedding turns together stay half a head apart, so blocks of half a head "
    "hold both and gain nothing.",
    "Keys are narrowed behind the rotary embedding, those of the newest token too. The paper's Llama-2-7B figures (a cache half as large "
    "without significant loss) are its own.",
)

STUDY = Study(
    number=50,
    title="K-sort: keys in block floating point",
    paper="Trukhanov & Soloveychik 2024, Accurate Block Quantization in LLMs with Outliers",
    claim="Sorting the channels of keys by size before blocks share an exponent lets 4-bit keys keep the model's quality, at no cost at "
    "run time.",
    baseline="BFP12 keys in the order of the weights; wide keys",
    treatment="channels of each head sorted by the norm of their row in the key projection",
    measure="perplexity of a small Llama, SQNR of attention scores; perplexity of stories260K with narrow caches",
    expected="sorting wins back at least half of the loss in blocks of 32 and 3 dB; nothing where a block is the whole head",
    run=run,
    needs=("data",),
)
