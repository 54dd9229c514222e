"""The real language model that studies cast: 260,032 parameters, trained on TinyStories; and the text it is judged on.

One window per story: the begin token and its first 127 tokens, as the weights' published figure has it (0.8132 bits per
byte over 100 stories).
"""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from narrowcast.io import load_model
from narrowcast.metrics import bits_per_byte, mean_loss
from narrowcast.recipes import Recipe
from narrowcast.studies.study import Setting
from narrowcast.workloads import encode, windows
from narrowcast.workloads.corpus import SEPARATOR
from narrowcast.workloads.tokens import load_tokenizer

PUBLISHED = 0.8132
_WINDOW, _BEGIN = 127, 1
_QUICK = 4  # stories of a quick run


@dataclass(frozen=True)
class Stories:
    """A model and its text.

    Attributes:
        model: float32, in evaluation mode; not to be changed: convert a copy.
        folder: the Hugging Face folder it came from.
        batches: int64 ``[stories, <= 128]``, each window behind the begin token.
        bytes: size of the text of the windows.
        calibration: further stories as ``batches``, for methods that look at activations; none of them is judged.
    """

    model: nn.Module
    folder: Path
    batches: list[Tensor]
    bytes: int
    calibration: list[Tensor]

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(batch.numel() - len(batch) for batch in self.batches)

    def bits_per_byte(self, model: nn.Module) -> float:
        """Return the code length of the text under ``model``."""
        return bits_per_byte(mean_loss(model, self.batches), self.tokens, self.bytes)

    def converted(self, recipe: Recipe) -> nn.Module:
        """Return a copy of the model under ``recipe``, emulated."""
        model = copy.deepcopy(self.model)
        recipe.convert(model, backend="emulate")
        return model


def load_stories(setting: Setting, calibrate: int = 0) -> Stories:
    """Return the model and a hundred validation stories, the first ``calibrate`` of them set apart; a quick run judges
    four.
    """
    folder = setting.folder("lm-stories260K") / "hf"
    model, file = load_model(folder)
    assert file is not None
    text = (setting.folder("text") / "tinystories_val100.txt").read_text(encoding="utf-8")
    stories = tuple(story.strip() for story in text.split(SEPARATOR) if story.strip())
    ids = [one[:_WINDOW] for one in encode(stories[: calibrate + _QUICK] if setting.quick else stories, file)]
    size = sum(len(decoded.encode()) for decoded in load_tokenizer(file).decode_batch(ids[calibrate:]))
    apart, judged = (windows(part, _WINDOW, 16, start=_BEGIN) for part in (ids[:calibrate], ids[calibrate:]))
    return Stories(model.eval(), folder, judged, size, apart)
