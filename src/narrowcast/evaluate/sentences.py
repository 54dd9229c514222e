"""Two sentence encoders on scored pairs: does the likeness that they find still rank the pairs as people do."""

import torch
from torch import Tensor, nn

from narrowcast.evaluate.findings import Comparison, Finding
from narrowcast.evaluate.rounded import in_bfloat16
from narrowcast.metrics import bootstrap, spearman
from narrowcast.models.encoder import SentenceEncoder
from narrowcast.workloads.sentences import SentencePairs


def likeness(encoder: SentenceEncoder, pairs: SentencePairs, model: nn.Module | None = None) -> Tensor:
    """Return the cosine of each pair's embeddings, float64 ``[pairs]``."""
    first, second = (encoder.embed(side, model).double() for side in (pairs.first, pairs.second))
    return (first * second).sum(-1)


@torch.no_grad()
def compare_encoders(
    encoder: SentenceEncoder, b: nn.Module, pairs: SentencePairs, data: str = "pairs", draws: int = 1000, seed: int = 0
) -> Comparison:
    """Return what ``b`` lost against the encoder's own model on scored pairs.

    Findings: Spearman's rank correlation with the scores, and that of B's likenesses with A's.
    """
    wide, narrow, rounded = (
        likeness(encoder, pairs, model) for model in (encoder.model, b, in_bfloat16(encoder.model))
    )
    of_a, of_b, off = (float(spearman(one, pairs.scores)) for one in (wide, narrow, rounded))
    change = bootstrap(
        lambda w: spearman(narrow, pairs.scores, w) - spearman(wide, pairs.scores, w), len(pairs), draws, seed=seed
    )
    own = bootstrap(lambda w: spearman(wide, narrow, w), len(pairs), draws, seed=seed)
    alike = float(spearman(wide, rounded))
    found = [
        Finding("rank correlation with people's scores", of_a, of_b, change, off - of_a, True),
        Finding("rank correlation of B's likenesses with A's", None, own.value, own, alike, True),
    ]
    return Comparison("sentences", data, len(pairs), found)
