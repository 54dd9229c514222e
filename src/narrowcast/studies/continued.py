"""What studies 24 and 35 share: one small Llama trained in bfloat16, and training that goes on from it in any precision."""

import copy
import hashlib
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.metrics import next_token_loss
from narrowcast.optim import learning_rate
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.small_training import prepared
from narrowcast.studies.study import Setting
from narrowcast.workloads import derived_seed

_CONTEXT, _BATCH = 64, 8
#: of the standard library: the domain of code
_MODULES = ("argparse", "ast", "calendar", "configparser", "csv", "difflib", "doctest", "enum", "heapq", "inspect", "optparse",
            "pickle", "subprocess", "tarfile", "textwrap", "typing")  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """One kind of text as token ids under the base model's tokenizer: int64 training ids, and windows to judge by."""

    name: str
    train: Tensor
    validation: Tensor

    def batch(self, rows: int, *seed: int | str) -> Tensor:
        """Return int64 ``[rows, 65]``, a pure function of the arguments."""
        g = torch.Generator().manual_seed(derived_seed(self.name, *seed) % (1 << 62))
        starts = torch.randint(0, len(self.train) - _CONTEXT, (rows,), generator=g)
        return torch.stack([self.train[s : s + _CONTEXT + 1] for s in starts.tolist()])


@dataclass(frozen=True)
class Base:
    """The model that training goes on from, in float32 with its state of the optimizer lost, and the domains."""

    model: nn.Module
    domains: tuple[Domain, ...]


def base(setting: Setting) -> Base:
    """Train on plays in bfloat16; return the model with two domains: prose, and Python source."""
    trainer = prepared(recipe("bf16"), setting, setting.seed, steps=300)
    result = trainer.run(None)
    setting.note(f"base: validation loss {result.final_val_loss:.4f}")
    model = copy.deepcopy(prepared(recipe("fp32"), setting, setting.seed).model)
    model.load_state_dict(result.model.state_dict(), strict=False)
    prose = (setting.folder("text") / "botchan_en.txt").read_text(encoding="utf-8")
    code = "\n".join((Path(os.__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES)
    limit = 20_000 if setting.quick else 400_000
    domains = tuple(
        _domain(name, text[:limit], result.tokens.tokenizer) for name, text in (("prose", prose), ("code", code))
    )
    return Base(model, domains)


def _domain(name: str, text: str, tokenizer: str) -> Domain:
    from tokenizers import Tokenizer

    ids = torch.tensor(Tokenizer.from_str(tokenizer).encode(text, add_special_tokens=False).ids)
    cut = int(0.9 * len(ids))
    judged = ids[cut:]
    count = min((len(judged) - 1) // _CONTEXT, 128)
    return Domain(name, ids[:cut], torch.stack([judged[i * _CONTEXT : (i + 1) * _CONTEXT + 1] for i in range(count)]))


@dataclass(frozen=True)
class Run:
    """Training that went on.

    Attributes:
        losses: of each step.
        order: hash of all batches in their order.
        model: where it ended.
    """

    losses: tuple[float, ...]
    order: str
    model: nn.Module

    @property
    def spikes(self) -> int:
        """Steps whose loss lies more than 5 deviations above the mean of the 30 before."""
        found = 0
        for i in range(30, len(self.losses)):
            before = self.losses[i - 30 : i]
            found += self.losses[i] > statistics.fmean(before) + 5 * statistics.stdev(before)
        return found


def carry_on(start: Base, chosen: Recipe, setting: Setting, seed: int, steps: int, rate: float = 1e-3) -> Run:
    """Go on from ``start`` under a recipe: half of every batch from each domain, warm-up and then WSD."""
    model = copy.deepcopy(start.model)
    chosen.convert(model, backend="emulate", seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    count = 2 if setting.quick else steps
    losses, order = [], hashlib.sha256()
    for step in range(count):
        rows = _BATCH // len(start.domains)
        tokens = torch.cat([domain.batch(rows, seed, step) for domain in start.domains])
        order.update(tokens.numpy().tobytes())
        losses.append(
            _update(
                model, opt, next_token_loss(model, tokens), learning_rate("wsd", step, count, count // 10 + 1, rate)
            )
        )
    return Run(tuple(losses), order.hexdigest(), model)


def _update(model: nn.Module, opt: torch.optim.Optimizer, loss: Tensor, rate: float) -> float:
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in opt.param_groups:
        group["lr"] = rate
    opt.step()
    return float(loss.detach())


@torch.no_grad()
def judged(model: nn.Module, domain: Domain) -> tuple[float, float]:
    """Return (nats per token, share of tokens whose likeliest guess is right) on a domain's validation windows."""
    logits = torch.cat([model(input_ids=part[:, :-1], use_cache=False).logits for part in domain.validation.split(16)])
    wanted = domain.validation[:, 1:]
    loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
    return float(loss), float((logits.argmax(-1) == wanted).float().mean())


# --- a task with right answers ---

_WORD, _SYMBOLS, _ASK, _ANSWER = 5, range(100, 116), 98, 99


def instructions(rows: int, *seed: int | str) -> tuple[Tensor, Tensor]:
    """Return (tokens, where the answer is): a word of five symbols, and the answer, the word backwards."""
    g = torch.Generator().manual_seed(derived_seed("task", *seed) % (1 << 62))
    word = torch.randint(_SYMBOLS.start, _SYMBOLS.stop, (rows, _WORD), generator=g)
    mark = torch.full((rows, 1), _ASK), torch.full((rows, 1), _ANSWER)
    tokens = torch.cat([mark[0], word, mark[1], word.flip(1)], dim=1)
    return tokens, torch.arange(tokens.shape[1]) > _WORD + 1


def tune(run: Run, setting: Setting, seed: int, steps: int = 250) -> float:
    """Fine-tune a model on the task, in the precision it has; return the share of words answered without a mistake."""
    model = run.model
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    count = 2 if setting.quick else steps
    for step in range(count):
        tokens, answer = instructions(32, seed, step)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, answer[1:]]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, answer].flatten())
        _update(model, opt, loss, learning_rate("wsd", step, count, count // 10 + 1, 2e-3))
    tokens, answer = instructions(64 if setting.quick else 1000, "held out")
    with torch.no_grad():
        guess = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, answer[1:]].argmax(-1)
    return float((guess == tokens[:, answer]).all(1).float().mean())


def rows_of(found: dict[str, list[Any]]) -> list[list[Any]]:
    """Return (name, mean, lowest, highest) of each arm."""
    return [[name, statistics.fmean(values), min(values), max(values)] for name, values in found.items()]
