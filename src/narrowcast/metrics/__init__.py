"""Side wing: measures as pure functions."""

from narrowcast.metrics.accuracy import accuracy
from narrowcast.metrics.bootstrap import Interval, bootstrap, mean_of, resamples
from narrowcast.metrics.correlation import spearman
from narrowcast.metrics.divergence import kl_divergence, same_top, top_divergence
from narrowcast.metrics.perplexity import bits_per_byte, losses_by_row, mean_loss, next_token_loss, perplexity
from narrowcast.metrics.rouge import rouge_1, rouge_l
from narrowcast.metrics.window import WindowFigures, window_figures

__all__ = [
    "Interval",
    "WindowFigures",
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
    "rouge_1",
    "rouge_l",
    "same_top",
    "spearman",
    "top_divergence",
    "window_figures",
]
