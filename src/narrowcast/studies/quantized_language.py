"""What the studies of post-training quantization share on the language model: calibration, copies, and how to judge them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.evaluate import Finding, Predictions, language_findings, predictions
from narrowcast.models.generate import drawn, write
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.studies.stories import Stories, load_stories
from narrowcast.studies.study import Setting

_LENGTH = 128


@dataclass(frozen=True)
class Judge:
    """The wide model, the text that it and its copies are judged on, and what it predicts there.

    Attributes:
        stories: model, judged windows, and windows set apart for calibration.
        wide: the wide model's predictions, logits kept.
    """

    stories: Stories
    wide: Predictions

    @property
    def model(self) -> nn.Module:
        """The wide model; copy it before changing it."""
        return self.stories.model

    def own_text(self, rows: int, seed: int = 0, length: int = _LENGTH) -> list[Tensor]:
        """Return ``rows`` texts that the wide model draws from its own predictions, in batches of up to 64."""
        generator = torch.Generator().manual_seed(seed)
        begin = torch.ones(rows, 1, dtype=torch.int64)
        return list(write(self.model, begin, length, drawn(generator)).split(64))

    def quantized(self, recipe: PtqRecipe, calibration: Sequence[Tensor] = ()) -> nn.Module:
        """Return a quantized copy of the model."""
        changed = copy.deepcopy(self.model)
        quantize_model(changed, recipe, calibration)
        return changed

    def predict(self, model: nn.Module) -> Predictions:
        """Return what ``model`` predicts of the judged text, against the wide model."""
        return predictions(model, self.stories.batches, self.wide)

    def findings(self, model: nn.Module) -> list[Finding]:
        """Return what ``model`` lost against the wide one."""
        return language_findings(self.wide, self.predict(model))

    def perplexity(self, recipe: PtqRecipe, calibration: Sequence[Tensor] = ()) -> float:
        """Return the perplexity of the judged text after ``recipe``."""
        return self.predict(self.quantized(recipe, calibration)).perplexity


def judge(setting: Setting, calibrate: int = 20) -> Judge:
    """Return the judge on the TinyStories model; ``calibrate`` stories are set apart (two of a quick run)."""
    stories = load_stories(setting, calibrate=2 if setting.quick else calibrate)
    return Judge(stories, predictions(stories.model, stories.batches, keep=True))


def closed(plain: float, better: float, wide: float) -> float:
    """Return the share of the gap between ``plain`` and ``wide`` that ``better`` closes."""
    return (plain - better) / (plain - wide)


def weights_changed(model: nn.Module, change: Callable[[str, Tensor], Tensor], inside: str = "layers.") -> nn.Module:
    """Return a copy of ``model`` whose matrices (in modules with ``inside`` in their name) went through ``change``."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if parameter.dim() == 2 and inside in name:
                parameter.copy_(change(name, parameter))
    return changed
