"""Side wing: measures as pure functions."""

from narrowcast.metrics.accuracy import accuracy
from narrowcast.metrics.bootstrap import Interval, bootstrap, mean_of, resamples
from narrowcast.metrics.correlation import spearman
from narrowcast.metrics.divergence import kl_divergence, same_top, top_divergence
from narrowcast.metrics.perplexity import bits_per_byte, losses_by_row, mean_loss, next_token_loss, perplexity

__all__ = [
    "Interval",
    "accuracy",
    "bits_per_byte",
    "bootstrap",
    "kl_divergence",
    "losses_by_row",
    "mean_loss",
    "mean_of",
    "next_token_loss",
    "perplexity",
    "resamples",
    "same_top",
    "spearman",
    "top_divergence",
]
