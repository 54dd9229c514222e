"""Side wing: measures as pure functions."""

from narrowcast.metrics.accuracy import accuracy
from narrowcast.metrics.divergence import top_divergence
from narrowcast.metrics.perplexity import bits_per_byte, losses_by_row, mean_loss, next_token_loss, perplexity

__all__ = [
    "accuracy",
    "bits_per_byte",
    "losses_by_row",
    "mean_loss",
    "next_token_loss",
    "perplexity",
    "top_divergence",
]
