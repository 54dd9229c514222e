"""Study 77: multiplication by one integer addition (L-Mul), in attention and in linear layers of a real model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.accumulate import product
from narrowcast.analysis.multipliers import energy_rows, lmul_by_definition, product_errors
from narrowcast.formats import format
from narrowcast.io import load_model
from narrowcast.metrics import bits_per_byte, losses_by_row, next_token_loss, perplexity
from narrowcast.models.attention import set_attention
from narrowcast.nn import LinearSpec, convert_linears
from narrowcast.ops import WIDE, Gemm, attention
from narrowcast.quantize import cast
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_most, equal, within
from narrowcast.workloads.stories import Stories, tiny_stories

EXACT = Gemm(WIDE, WIDE)
#: mean squared and mean relative error (%) over 400,000 pairs in [1, 2): sheet 77, computed independently
GOLDEN = {
    "lmul2": (0.0374, 6.9), "lmul3": (0.0176, 4.8), "lmul4": (0.0065, 3.0), "lmul5": (0.0060, 2.7),
    "lmul10": (0.0049, 2.6), "lmul2+nearest-even": (0.1716, 14.6), "lmul3+nearest-even": (0.0284, 5.7),
    "lmul4+nearest-even": (0.0218, 5.3), "e8m2": (0.0244, 5.9), "e8m3": (0.0061, 2.9), "e8m4": (0.0015, 1.5),
}  # fmt: skip
ATTENTION = ("e4m3fn", "e5m2", "lmul2", "lmul3", "lmul4", "lmul6", "lmul23", "lmul3+formula", "lmul4+nearest-even")
LINEAR = ("e4m3fn", "e5m2", "lmul3", "lmul4", "lmul23")


def all_pairs_agree(names: tuple[str, ...]) -> bool:
    """Whether the sum of words is the decoded form for all pairs of positive numbers of 8-bit floats."""
    for name in names:
        values = format(name).values()
        values = values[values > 0]
        for mantissa in (2, 3):
            found = product(f"lmul{mantissa}")(values[:, None].float(), values[None].float())
            if not torch.equal(found, lmul_by_definition(values[:, None], values[None], mantissa)):
                return False
    return True


def gemm_of(name: str) -> Gemm:
    """Return the gemm of float32 operands under L-Mul ``name``, or of operands rounded to the format ``name``."""
    if name.startswith("lmul"):
        return Gemm(WIDE, WIDE, product=product(name))
    return Gemm(cast(name), cast(name))


def with_attention(model: nn.Module, name: str) -> nn.Module:
    """Let both products of ``model``'s attention be ``name``'s."""
    gemm = gemm_of(name)
    set_attention(model, lambda q, k, v, mask, scale: attention(q, k, v, gemm, gemm, mask=mask, scale=scale))
    return model


def with_linears(model: nn.Module, name: str) -> nn.Module:
    """Let every linear layer's forward product be ``name``'s, the output head's too; gradients stay exact."""
    convert_linears(model, LinearSpec(gemm_of(name), EXACT, EXACT), name, keep_wide=())
    return model


@dataclass(frozen=True)
class Loss:
    """Loss by story in nats per token, and bits per byte over all of them."""

    by_story: Tensor
    weights: Tensor
    size: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float((self.by_story * self.weights).sum() / self.weights.sum())

    @property
    def bits(self) -> float:
        """Bits per byte."""
        return bits_per_byte(self.mean, int(self.weights.sum()), self.size)

    def beyond(self, other: "Loss") -> tuple[float, float]:
        """Return (increase over ``other`` in nats per token, standard error of that over the stories, paired)."""
        difference = (self.by_story - other.by_story) * self.weights / self.weights.mean()
        return float(difference.mean()), float(difference.std(correction=0) / max(1, len(difference) - 1) ** 0.5)

    def row(self, where: str, name: str, other: "Loss") -> list[Any]:
        """Return the table's row."""
        gain, noise = self.beyond(other)
        return [where, name, self.bits, perplexity(self.mean), 100 * (perplexity(gain) - 1), 100 * noise]


def loss_of(model: nn.Module, stories: Stories) -> Loss:
    """Measure ``model`` on ``stories``."""
    model.eval()
    batches = stories.batches
    weights = [torch.full((len(b),), b.shape[1] - 1.0, dtype=torch.float64) for b in batches]
    return Loss(torch.cat([losses_by_row(model, b) for b in batches]), torch.cat(weights), stories.size)


def fine_tune(model: nn.Module, stories: Stories, steps: int, seed: int) -> nn.Module:
    """Train all parameters for some steps of eight stories with AdamW at 3e-4."""
    optimizer, generator = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.0), torch.Generator()
    generator.manual_seed(seed)
    longest = max(stories.batches, key=len)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        next_token_loss(model, longest[torch.randperm(len(longest), generator=generator)[:8]]).backward()
        optimizer.step()
    return model


def language(setting: Setting) -> tuple[list[Check], list[list[Any]], dict[str, float]]:
    """Measure the real model with its attention's, then its linear layers' products replaced."""
    folder = setting.folder("lm-stories260K") / "hf"
    text = setting.folder("text") / "tinystories_val100.txt"
    stories = tiny_stories(text, folder / "tokenizer.json", limit=2 if setting.quick else 0)
    load: Callable[[], nn.Module] = lambda: load_model(folder)[0]  # noqa: E731 - a fresh copy each time
    base = loss_of(load(), stories)
    rows = [base.row("-", "float32", base)]
    gains: dict[str, float] = {}
    for where, names, swap in (("attention", ATTENTION, with_attention), ("linear", LINEAR, with_linears)):
        for name in names[:: 3 if setting.quick else 1]:
            found = loss_of(swap(load(), name), stories)
            rows.append(found.row(where, name, base))
            gains[f"{where} {name}"] = found.beyond(base)[0]
            setting.note(f"{name} in {where}: {found.mean:.4f} nats per token, {base.mean:.4f} in float32")
    gains |= tuned_gains(load, stories, setting, rows)
    golden = within("bits per byte of the float32 model, published 0.8132", base.bits, 0.8132, 5e-4, claim=False)
    return [golden] if not setting.quick else [], rows, gains


def tuned_gains(
    load: Callable[[], nn.Module], stories: Stories, setting: Setting, rows: list[list[Any]]
) -> dict[str, float]:
    """Fine-tune on the first half of the stories under each product and measure on the second; append the rows."""
    train, test = stories.halves()
    steps = 1 if setting.quick else 40
    found: dict[str, float] = {}
    control = loss_of(fine_tune(with_linears(load(), "float32"), train, steps, setting.seed), test)
    for name in ("e4m3fn", "lmul3"):
        loss = loss_of(fine_tune(with_linears(load(), name), train, steps, setting.seed), test)
        rows.append(loss.row("linear, fine-tuned, other half", name, control))
        found[f"tuned {name}"] = loss.beyond(control)[0]
        setting.note(f"{name} fine-tuned: {loss.mean:.4f} nats per token, {control.mean:.4f} in float32")
    return found


def error_checks(found: dict[str, tuple[float, float, float]], quick: bool) -> list[Check]:
    """Return the golden checks of single products, and the claim's."""
    square = {name: values[1] for name, values in found.items()}
    checks = [
        at_most("mean squared error: L-Mul 3 bits / e5m2's product", square["lmul3"] / square["e8m2"], 1.0),
        at_most('mean squared error: L-Mul 4 bits / e4m3\'s ("comparable")', square["lmul4"] / square["e8m3"], 1.1),
    ]
    agree = all_pairs_agree(("e5m2",) if quick else ("e4m3fn", "e5m2"))
    checks.append(equal("sum of words = decoded form, all pairs of 8-bit floats", str(agree), "True", claim=False))
    for name, (mean_square, relative) in GOLDEN.items() if not quick else ():
        worst = max(abs(found[name][1] / mean_square - 1), abs(found[name][2] / relative - 1))
        checks.append(at_most(f"{name}: off the sheet's table, relative", worst, 0.03, claim=False))
    return checks


def loss_checks(gains: dict[str, float]) -> list[Check]:
    """Return the claim's checks on the real model; gains over float32 in nats per token."""
    lost = 100 * (perplexity(gains["attention lmul4"]) - 1)
    return [
        at_most("attention: loss by L-Mul 4 bits, by e4m3fn", gains["attention lmul4"], gains["attention e4m3fn"]),
        at_most("attention: loss by L-Mul 3 bits, by e5m2", gains["attention lmul3"], gains["attention e5m2"]),
        at_most("attention 'almost lossless': perplexity lost by L-Mul 4 bits, %", lost, 1.0),
        at_most(
            "linear layers, fine-tuned: loss by L-Mul 3 bits, by e4m3fn", gains["tuned lmul3"], gains["tuned e4m3fn"]
        ),
    ]


def run(setting: Setting) -> Outcome:
    """See the study's protocol."""
    found = product_errors(tuple(GOLDEN), 20_000 if setting.quick else 400_000, setting.seed)
    golden, rows, gains = language(setting)
    checks = [*golden, *error_checks(found, setting.quick), *([] if setting.quick else loss_checks(gains))]
    columns = ["where", "products", "bits per byte", "perplexity", "perplexity lost, %", "standard error, %"]
    tables: tuple[dict[str, Any], ...] = (
        {
            "title": "Error of a product over pairs in [1, 2)",
            "columns": ["multiplier", "mean", "mean square", "mean relative, %"],
            "rows": [[name, *values] for name, values in found.items()],
        },
        {"title": "The real model", "columns": columns, "rows": rows},
        {
            "title": "Energy: a calculation, nothing was measured",
            "columns": ["operation", "pJ", "source"],
            "rows": energy_rows(),
        },
    )
    return Outcome(tuple(checks), tables, (_plot(rows),), NOTES)


def _plot(rows: list[list[Any]]) -> dict[str, Any]:
    series = []
    for where in ("attention", "linear"):
        chosen = [row for row in rows if row[0] == where]
        series.append({"name": where, "x": [r[1] for r in chosen], "y": [r[4] for r in chosen], "mode": "bars"})
    return {"title": "Perplexity lost", "x": "products", "y": "perplexity lost, %", "series": series}


NOTES = (
    "260,032 parameters and 100 stories of 127 tokens stand in for models of 7 to 8 billion and for task suites, which "
    "are out of reach here.",
    "Formats are unscaled: e4m3fn loses softmax shares below 2**-10. L-Mul operands are truncated; sums are float32.",
    "A weighted sum by L-Mul has weights that sum to 1.0x, and 1 x 1 is 1.125 at 3 bits: scales and norms stay exact.",
    "Fine-tuning: 40 steps on 50 stories, gradients by ordinary products, measured on the other 50 against float32 "
    "tuned alike.",
    "An operand that rounds up to 2 is carried into its exponent, as a float is; so '+nearest-even' with '+formula' is "
    "not the sheet's column, which leaves it at 2.",
)

STUDY = Study(
    number=77,
    title="L-Mul: a product is one integer addition",
    paper="Luo and Sun 2024, Addition is All You Need for Energy-efficient Language Models",
    claim="L-Mul with 4 mantissa bits is as precise as e4m3 products, with 3 more than e5m2; attention hardly suffers.",
    baseline="the real 260K-parameter story model in float32; products of operands rounded to e4m3fn and e5m2",
    treatment="both products of attention, or those of all linear layers, by L-Mul with 2 to 23 mantissa bits",
    measure="error of single products over 400,000 pairs; bits per byte and perplexity on 100 stories",
    expected="L-Mul 4 within e4m3fn's loss, L-Mul 3 below e5m2's, perplexity within 1 % of float32",
    run=run,
    needs=("data",),
)
