"""One recipe, real training: deterministic, resumable, and loud when something goes wrong.

Batches are a pure function of (corpus, seed, step), initial weights of (config, seed): two recipes with one seed see
the same of both. Everything that a step depends on is in the checkpoint, so a run killed at any moment and resumed
gives the same losses bit for bit.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from narrowcast.analysis.memory import out_of_memory
from narrowcast.attend import Attention
from narrowcast.errors import CheckFailed, InputError, require_torch
from narrowcast.health import name_first_non_finite
from narrowcast.io import (
    append_metrics,
    check_fit,
    check_run,
    load_checkpoint,
    load_model,
    open_run,
    save_checkpoint,
    save_model,
    truncate_metrics,
)
from narrowcast.metrics import mean_loss, next_token_loss
from narrowcast.models import compiled, default_config, from_config
from narrowcast.nn import Conversion
from narrowcast.optim import LossScaler, learning_rate
from narrowcast.optim.narrow import WIDE_STATES, NarrowOptimizer
from narrowcast.place import Place
from narrowcast.recipes import Recipe, recipe
from narrowcast.workloads import TokenizedCorpus, derived_seed, load_corpus, tokenize

_BETAS = (0.9, 0.95)
PROBE = 8192  # tokens of a batch that is looked at layer by layer, all operands in float32


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a run.

    Attributes:
        recipe: name of the recipe, with ``+OPTIMIZER`` where its states are to be kept otherwise.
        data: text file or folder, None for the standard library's source.
        model: Hugging Face folder or config file, None for the small default Llama.
        steps, batch, context, accumulate: updates; sequences per micro-batch; tokens per sequence; micro-batches.
        lr, warmup, schedule, weight_decay, clip: AdamW's peak rate and schedule; decay of matrices; gradient norm.
        seed: of the weights, the batches and the random bits.
        vocab: size of the BPE trained on the corpus (unused with a model folder that has a tokenizer).
        eval_every, eval_batches: validation interval in steps, and batches used.
        checkpoint_every: interval in steps.
        backend: ``auto``, ``emulate`` or ``native``.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        wide: dtype of what the recipe leaves wide: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on CUDA).
        attention: what runs attention on CUDA: ``auto`` or a kernel of `attend.KERNELS`.
        compile: whether the model runs compiled whole.
    """

    recipe: str = "bf16"
    data: Path | None = None
    model: Path | None = None
    steps: int = 150
    batch: int = 16
    context: int = 64
    accumulate: int = 1
    lr: float = 4e-3
    warmup: int = 15
    schedule: str = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    vocab: int = 512
    eval_every: int = 50
    eval_batches: int = 32
    checkpoint_every: int = 50
    backend: str = "auto"
    device: str = "auto"
    wide: str = "auto"
    attention: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "context", "accumulate", "eval_every", "eval_batches", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(self, name)}")
        if not (0 < self.lr < math.inf and self.clip > 0 and 0 <= self.weight_decay < math.inf and self.warmup >= 0):
            raise InputError("--lr and --clip must be positive, --weight-decay and --warmup not negative")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed: expected 0 to 2**63 - 1, found {self.seed}")
        if self.vocab < 257:
            raise InputError(f"--vocab: expected at least 257 (256 bytes and the end token), found {self.vocab}")
        learning_rate(self.schedule, 0, 1, 0, 1.0)  # names the known schedules where this one is unknown
        Place.of(self.device, self.wide, self.attention)  # refuses a device or kernel that is not there

    @property
    def place(self) -> Place:
        """Where the run computes."""
        return Place.of(self.device, self.wide, self.attention)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class StepInfo:
    """What a progress bar may show after each step."""

    step: int
    steps: int
    loss: float
    lr: float
    seconds: float
    tokens_per_second: float


@dataclass
class TrainResult:
    """A run in memory.

    Attributes:
        model: the converted, trained model.
        conversion: the table of what became of every layer.
        tokens: the tokenized corpus.
        tokens_per_step: tokens that one update sees.
        probe_batch: int64 ``[batch, context + 1]``, the first validation batch, of `PROBE` tokens at most.
        attention: what runs attention, and why.
        train_losses, val_losses: ``(step, nats per token)``; validation at 0, every interval, and the end.
        seconds: of each update of this process.
        skipped_steps: updates skipped by the loss scaler.
    """

    model: nn.Module
    conversion: Conversion
    tokens: TokenizedCorpus
    tokens_per_step: int
    probe_batch: Tensor
    attention: Attention
    train_losses: list[tuple[int, float]] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    skipped_steps: int = 0

    @property
    def final_val_loss(self) -> float:
        """Validation loss at the end."""
        return self.val_losses[-1][1]

    @property
    def seconds_per_step(self) -> float:
        """Median time of one update."""
        return statistics.median(self.seconds) if self.seconds else 0.0


def build(config: TrainConfig, tokens: TokenizedCorpus | None = None) -> tuple[nn.Module, TokenizedCorpus]:
    """Return the wide model at its initial weights, and the tokenized corpus: ``tokens`` where it is at hand."""
    model, tokenizer = load_model(config.model, config.seed) if config.model else (None, None)
    tokens = tokens or tokenize(load_corpus(config.data), config.vocab, tokenizer)
    tokens.check(config.context)
    if model is None:
        model = from_config(default_config(tokens.vocab, config.context), config.seed)
    rows = next(m for m in model.modules() if isinstance(m, nn.Embedding)).num_embeddings
    if tokens.vocab > rows:
        raise InputError(f"--model {config.model}: embeds {rows} tokens, the tokenizer has {tokens.vocab}; use its own")
    reach = getattr(model.config, "max_position_embeddings", None)
    if reach is not None and config.context > reach:
        raise InputError(f"--context {config.context}: the model reaches {reach} tokens; give at most that")
    return model, tokens


class Trainer:
    """One run: a model, its optimizer, and the loop around them. Use `train`, which drives it."""

    def __init__(
        self, config: TrainConfig, out: Path | None, chosen: Recipe | None = None, tokens: TokenizedCorpus | None = None
    ) -> None:
        self.config, self.out = config, out
        self.recipe: Recipe = chosen or recipe(config.recipe)
        self.place = config.place
        model, tokens = build(config) if tokens is None else build(config, tokens)
        model.to(self.place.device)
        attention = self.place.attention(model)
        conversion = self.recipe.convert(model, backend=config.backend, seed=config.seed)
        self.model = model
        self.runs: Any = compiled(model) if config.compile else model  # the same parameters
        self.scaler = LossScaler(**asdict(self.recipe.loss_scale)) if self.recipe.loss_scale else None
        self.optimizer = self._optimizer()
        held_out = tokens.validation_batches(config.eval_batches, config.batch, config.context)
        self.validation = [batch.to(self.place.device) for batch in held_out]
        seen = config.batch * config.context * config.accumulate
        probed = self.validation[0][: max(1, PROBE // config.context)]
        self.result = TrainResult(model, conversion, tokens, seen, probed, attention)
        self.step = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        c, states = self.config, self.recipe.optimizer
        groups = self.recipe.parameter_groups(self.model, c.weight_decay)
        if states is None:
            return torch.optim.AdamW(groups, lr=c.lr, betas=_BETAS, fused=self.place.device.type == "cuda")
        split = [
            {**group, "params": [p for p in group["params"] if (p.dim() >= 2) is matrix], "states": name}
            for group in groups
            for matrix, name in ((True, states), (False, WIDE_STATES))
        ]
        return NarrowOptimizer(split, states, c.lr, _BETAS, seed=c.seed, backend=c.backend)

    def run(self, on_step: Callable[[StepInfo], None] | None) -> TrainResult:
        """Train from the current step to the last."""
        try:
            with self.place.repeatable(), self.place.attending(self.model, self.result.attention):
                return self._run(on_step)
        except torch.OutOfMemoryError as error:
            wanted = str(error)  # and no more of it: its frames hold the tensors of the step
        tokens = self._batch(0)
        with self.place.autocast():
            why = out_of_memory(self.model, self.optimizer, self.recipe.optimizer, tokens, self.place.wide, wanted)
        raise InputError(f"step {self.step + 1}: {why}{self._kept}")

    @property
    def _kept(self) -> str:  # what to say of the checkpoints when a run ends early
        there = self.out is not None and any((self.out / "checkpoints").glob("*.json"))
        return f"; the last checkpoint in {self.out} is good" if there else ""

    def _run(self, on_step: Callable[[StepInfo], None] | None) -> TrainResult:
        if not self.result.val_losses:
            self._validate()
        while self.step < self.config.steps:
            start = time.perf_counter()
            loss, rate = self.update()
            elapsed = time.perf_counter() - start
            self.result.seconds.append(elapsed)
            self.result.train_losses.append((self.step, loss))
            self._log({"step": self.step, "loss": loss, "lr": rate, "seconds": round(elapsed, 4)})
            last = self.step == self.config.steps
            if last or self.step % self.config.eval_every == 0:
                self._validate()
            if self.out is not None and (last or self.step % self.config.checkpoint_every == 0):
                self.save()
            if on_step is not None:
                speed = self.result.tokens_per_step / elapsed
                on_step(StepInfo(self.step, self.config.steps, loss, rate, elapsed, speed))
        self.result.skipped_steps = self.scaler.skipped if self.scaler else 0
        return self.result

    def update(self) -> tuple[float, float]:
        """Make one optimizer step; return (loss, learning rate). The loss scale stays put between micro-batches."""
        c = self.config
        self.optimizer.zero_grad(set_to_none=True)
        total, scale = 0.0, self.scaler.scale if self.scaler else 1.0
        for micro in range(c.accumulate):
            tokens = self._batch(micro).to(self.place.device)
            with self.place.seeded(derived_seed("dropout", c.seed, self.step, micro)):  # pure function of (seed, step)
                with self.place.autocast():
                    loss = next_token_loss(self.runs, tokens) / c.accumulate
                if not loss.isfinite():
                    self._diverged(tokens)
                (loss * scale).backward()
            total += float(loss.detach())
        rate = learning_rate(c.schedule, self.step, c.steps, c.warmup, c.lr)
        if self._gradients_ready(tokens):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            self.optimizer.step()
        self.step += 1
        return total, rate

    def _batch(self, micro: int) -> Tensor:
        return self.result.tokens.batch(self.config.seed, self.step, micro, self.config.batch, self.config.context)

    def _gradients_ready(self, tokens: Tensor) -> bool:
        """Unscale and clip; return False where the loss scaler says to skip this update."""
        parameters = list(self.model.parameters())
        if self.scaler is not None:
            finite = self.scaler.unscale(parameters)
            self.scaler.update(finite)
            if not finite:
                return False
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if not norm.isfinite():
            self._diverged(tokens)
        return True

    def _diverged(self, tokens: Tensor) -> NoReturn:
        what = f"{name_first_non_finite(self.model, tokens)} is not finite{self._kept}"
        raise CheckFailed(f"recipe {self.recipe.name} diverged at step {self.step}: {what}")

    def _validate(self) -> None:
        with self.place.autocast():
            loss = mean_loss(self.runs, self.validation)
            if not math.isfinite(loss):
                self._diverged(next(b for b in self.validation if not math.isfinite(mean_loss(self.runs, [b]))))
        self.result.val_losses.append((self.step, loss))
        self._log({"step": self.step, "val_loss": loss})

    def _log(self, record: dict[str, Any]) -> None:
        if self.out is not None:
            append_metrics(self.out / "metrics.jsonl", record)

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        assert self.out is not None
        tensors = {f"model.{n}": t for n, t in self._tensors().items()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        state = {"scaler": self.scaler.state() if self.scaler else None}
        save_checkpoint(self.out / "checkpoints", self.step, tensors, state)

    def load(self) -> None:
        """Continue from the newest checkpoint of the run folder, or from the start where there is none."""
        assert self.out is not None
        found = load_checkpoint(self.out / "checkpoints")
        if found is not None:
            self.step, tensors, state = found
            self._restore(tensors)
            if self.scaler is not None:
                self.scaler.restore(state["scaler"])
        for record in truncate_metrics(self.out / "metrics.jsonl", self.step if found else -1):
            key = "loss" if "loss" in record else "val_loss"
            losses = self.result.train_losses if key == "loss" else self.result.val_losses
            losses.append((record["step"], record[key]))

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        check_fit(tensors, {f"model.{n}": t for n, t in self._tensors().items()})
        with torch.no_grad():
            for name, target in self._tensors().items():
                target.copy_(tensors[f"model.{name}"])
        for name, p in self.model.named_parameters():
            prefix = f"optimizer.{name}."
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            if state:  # where the optimizer would have made it: on the device, but for an unfused step count
                fused = any(group.get("fused") for group in self.optimizer.param_groups)
                self.optimizer.state[p] = {
                    k: t if k == "step" and not fused else t.to(p.device) for k, t in state.items()
                }


def train(
    config: TrainConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    chosen: Recipe | None = None,
    tokens: TokenizedCorpus | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainResult:
    """Train one model under one recipe.

    Args:
        config: what decides the numbers.
        out: run folder (metrics, checkpoints, the final model), or None to keep everything in memory.
        resume: continue the run in ``out`` from its newest checkpoint; the settings must be the same.
        overwrite: replace the run in ``out``.
        chosen: a recipe of your own, instead of the one that ``config`` names; it has no name to resume by, so the run
            stays in memory.
        tokens: the corpus that ``config`` names, where it is at hand.
        on_step: called after every update.

    A run killed at any moment and resumed gives the same losses and weights bit for bit: on a CPU with as many threads,
    on a GPU on the same kind of GPU; with the same versions, and compiled if it was. The seconds are not the same.

    Raises InputError for bad input, before anything is written, and where memory runs out, naming what took it;
    CheckFailed where the run diverges, naming the first tensor that is not finite.
    """
    require_torch(torch.__version__)
    if chosen is not None and out is not None:
        raise InputError(f"recipe {chosen.name} is in no table: a run in {out} could not be resumed; leave out empty")
    if out is not None:
        check_run(out, resume=resume, overwrite=overwrite)  # before the work that reading a corpus is
    trainer = Trainer(config, out, chosen, tokens)
    if out is not None:
        result = trainer.result
        where = {**trainer.place.to_json(), "attention": result.attention.kind}
        settings = {**config.to_json(), **where, "corpus": result.tokens.corpus.digest[:16]}
        open_run(out, settings, resume=resume, overwrite=overwrite)
        if resume:
            trainer.load()
    result = trainer.run(on_step)
    if out is not None:
        save_model(result.model, result.tokens.tokenizer, out / "model")
    return result
