"""``narrowcast train``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from narrowcast.backend import tally
from narrowcast.cli.common import (
    AttentionOption,
    CompileFlag,
    DataOption,
    DeviceOption,
    JsonFlag,
    ModelOption,
    OutOption,
    OverwriteFlag,
    ResumeFlag,
    SeedOption,
    ThreadsOption,
    WideOption,
    console,
    emit,
    megabytes,
    progress,
    use_threads,
)
from narrowcast.errors import InputError
from narrowcast.metrics import perplexity
from narrowcast.optim import state_bytes
from narrowcast.recipes import Recipe
from narrowcast.recipes import recipe as find
from narrowcast.train import StepInfo, TrainConfig, TrainResult
from narrowcast.train import train as run_training

_D = TrainConfig()


def train(
    recipe: Annotated[str, typer.Option(help="Recipe, or RECIPE+OPTIMIZER; see 'narrowcast recipes'.")] = _D.recipe,
    data: DataOption = None,
    model: ModelOption = None,
    out: OutOption = Path("runs/train"),
    steps: Annotated[int, typer.Option(help="Optimizer updates.")] = _D.steps,
    batch: Annotated[int, typer.Option(help="Sequences per micro-batch.")] = _D.batch,
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = _D.context,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per update.")] = _D.accumulate,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _D.lr,
    warmup: Annotated[int, typer.Option(help="Warm-up updates.")] = _D.warmup,
    schedule: Annotated[str, typer.Option(help="cosine or wsd.")] = _D.schedule,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = _D.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest gradient norm.")] = _D.clip,
    vocab: Annotated[int, typer.Option(help="Size of the BPE trained on the corpus.")] = _D.vocab,
    eval_every: Annotated[int, typer.Option(help="Updates between validations.")] = _D.eval_every,
    checkpoint_every: Annotated[int, typer.Option(help="Updates between checkpoints.")] = _D.checkpoint_every,
    backend: Annotated[str, typer.Option(help="auto, emulate or native.")] = _D.backend,
    device: DeviceOption = _D.device,
    wide: WideOption = _D.wide,
    attention: AttentionOption = _D.attention,
    compiled: CompileFlag = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events beside the metrics.")] = False,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train one model under one recipe.

    Writes metrics.jsonl, checkpoints and the trained model (a Hugging Face folder) to --out. A run killed at any moment
    goes on with --resume to the same losses and weights bit for bit, on a like machine with the same versions.

    Example: narrowcast train --recipe fp8-rowwise --steps 300 --out runs/fp8
    """
    use_threads(threads)
    config = TrainConfig(
        recipe=recipe, data=data, model=model, steps=steps, batch=batch, context=context, accumulate=accumulate,
        lr=lr, warmup=warmup, schedule=schedule, weight_decay=weight_decay, clip=clip, vocab=vocab,
        eval_every=eval_every, checkpoint_every=checkpoint_every, backend=backend, seed=seed,
        device=device, wide=wide, attention=attention, compile=compiled,
    )  # fmt: skip
    board = _Board(out) if tensorboard else None
    with progress() as bar:
        task = bar.add_task(f"train {recipe}", total=steps, note="")

        def on_step(info: StepInfo) -> None:
            note = f"loss {info.loss:.3f}  {info.tokens_per_second:,.0f} tokens/s"
            bar.update(task, completed=info.step, note=note)
            if board is not None:
                board.add("loss", info.loss, info.step)

        result = run_training(config, out, resume=resume, overwrite=overwrite, on_step=on_step)
    if board is not None:
        for step, loss in result.val_losses:
            board.add("validation loss", loss, step)
        board.close()
    emit(_payload(config, result, out), as_json, lambda: _show(config, result, out))


class _Board:
    """TensorBoard events beside the run folder; nothing is written before the first value."""

    def __init__(self, out: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs its package: pip install 'narrowcast[tensorboard]'") from None
        self._open: Callable[[str], Any] = SummaryWriter
        self._folder = str(out.with_name(out.name + "-tensorboard"))
        self._writer: Any = None

    def add(self, name: str, value: float, step: int) -> None:
        """Add one value."""
        self._writer = self._writer or self._open(self._folder)
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Push the events to the disk."""
        if self._writer is not None:
            self._writer.close()


def _payload(config: TrainConfig, result: TrainResult, out: Path) -> dict[str, Any]:
    return {
        "settings": config.to_json(),
        "out": str(out),
        "val_losses": result.val_losses,
        "final_val_loss": result.final_val_loss,
        "seconds_per_step": result.seconds_per_step,
        "skipped_steps": result.skipped_steps,
        "optimizer_bytes": round(_optimizer_bytes(result, find(config.recipe))),
        "attention": result.attention.to_json(),
        "conversion": result.conversion.to_json(),
        "products": vars(tally()),
    }


def _optimizer_bytes(result: TrainResult, chosen: Recipe) -> float:
    return state_bytes(result.model, chosen.optimizer)


def _show(config: TrainConfig, result: TrainResult, out: Path) -> None:
    corpus = result.tokens.corpus
    narrow, chosen = result.conversion.narrow, find(config.recipe)
    console.print(f"corpus      {corpus.name}: {corpus.files} files, {corpus.split}", highlight=False)
    if result.tokens.sampled:
        console.print(f"            {result.tokens.sampled}", highlight=False)
    if corpus.skipped:
        name, reason = corpus.skipped[0]
        console.print(f"            {len(corpus.skipped)} files passed over, first {name} ({reason})", highlight=False)
    wide = len(result.conversion.rows) - len(narrow)
    console.print(
        f"recipe      {config.recipe}: {len(narrow)} layers narrowed, {wide} sites left wide", highlight=False
    )
    states = chosen.optimizer or "float32"
    console.print(f"optimizer   {states}: {megabytes(_optimizer_bytes(result, chosen))} of master weights and moments")
    if narrow and narrow[0].backend == "emulate":
        console.print(f"backend     emulate: {narrow[0].why}", highlight=False)
    console.print(f"attention   {result.attention}", highlight=False)
    if (products := tally()).total:
        console.print(f"products    {products}", highlight=False)
    for step, loss in result.val_losses:
        text = f"validation  step {step:>6}  loss {loss:.4f}  perplexity {perplexity(loss):.2f}"
        console.print(text, highlight=False)
    if result.skipped_steps:
        console.print(f"loss scale  {result.skipped_steps} updates skipped for overflow", highlight=False)
    console.print(f"written     {out}", highlight=False)
