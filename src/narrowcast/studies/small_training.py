"""A Llama of half a million parameters, trained for a minute under a recipe of the study's own."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from narrowcast.recipes import Recipe
from narrowcast.studies.study import Setting
from narrowcast.train import TrainConfig, Trainer, TrainResult

_CONFIG = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.04,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_QUICK = {"steps": 2, "batch": 2, "context": 32, "eval_batches": 1, "warmup": 1}


@dataclass(frozen=True)
class Spread:
    """What became of one recipe over the seeds.

    Attributes:
        name: of the recipe.
        losses: final validation losses in nats per token, one a seed.
        last: the run of the last seed, with its model.
    """

    name: str
    losses: tuple[float, ...]
    last: TrainResult

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)

    @property
    def listed(self) -> str:
        """The losses as text."""
        return ", ".join(f"{loss:.4f}" for loss in self.losses)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 of one."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0


def prepared(
    chosen: Recipe,
    setting: Setting,
    seed: int,
    *,
    steps: int = 150,
    lr: float = 4e-3,
    text: str = "tinyshakespeare.txt",
    schedule: str = "cosine",
    shape: dict[str, int] | None = None,
) -> Trainer:
    """Return a run of the small Llama on ``text`` before its first step; a quick run has two steps.

    ``shape`` replaces entries of its config, such as ``hidden_size``.
    """
    data = setting.folder("text") / text
    sizes = _QUICK if setting.quick else {"steps": steps, "batch": 8, "context": 64, "eval_batches": 32}
    with TemporaryDirectory() as folder:
        model = Path(folder) / "config.json"
        model.write_text(json.dumps(_CONFIG | (shape or {})))
        config = TrainConfig(
            data=data, model=model, seed=seed, lr=lr, eval_every=10**9, vocab=512, schedule=schedule, device="cpu",
            **sizes,  # type: ignore[arg-type]
        )  # fmt: skip
        return Trainer(config, None, chosen)


def trained(chosen: Recipe, setting: Setting, seed: int, *, steps: int = 150, lr: float = 4e-3) -> TrainResult:
    """Train the small Llama on tiny Shakespeare and return the result; a quick run takes two steps."""
    return prepared(chosen, setting, seed, steps=steps, lr=lr).run(None)


def over_seeds(chosen: Recipe, setting: Setting, *, seeds: int = 3, steps: int = 150, lr: float = 4e-3) -> Spread:
    """Train ``chosen`` under ``seeds`` seeds, one in a quick run."""
    count = 1 if setting.quick else seeds
    losses = []
    for seed in range(setting.seed, setting.seed + count):
        last = trained(chosen, setting, seed, steps=steps, lr=lr)
        losses.append(last.final_val_loss)
        setting.note(f"{chosen.name}, seed {seed}: validation loss {losses[-1]:.4f}")
    return Spread(chosen.name, tuple(losses), last)
