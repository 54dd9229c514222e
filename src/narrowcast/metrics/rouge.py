"""How much two texts share: ROUGE-1 and ROUGE-L over words or token ids.

Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (F-measure with equal weights).
"""

from collections import Counter
from collections.abc import Hashable, Sequence


def rouge_1(reference: Sequence[Hashable], text: Sequence[Hashable]) -> float:
    """Return the F-measure of the words that both have, each as often as the one that has it less often."""
    shared = sum((Counter(reference) & Counter(text)).values())
    return _f_measure(shared, len(reference), len(text))


def rouge_l(reference: Sequence[Hashable], text: Sequence[Hashable]) -> float:
    """Return the F-measure of the longest common subsequence."""
    lengths = [0] * (len(text) + 1)
    for word in reference:
        diagonal = 0
        for j, other in enumerate(text, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return _f_measure(lengths[-1], len(reference), len(text))


def _f_measure(shared: int, reference: int, text: int) -> float:
    """Return the harmonic mean of ``shared / reference`` and ``shared / text``; 1 for two empty texts."""
    return 2 * shared / (reference + text) if reference + text else 1.0
