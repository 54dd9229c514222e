"""Side wing: measures as pure functions."""

from narrowcast.metrics.perplexity import bits_per_byte, mean_loss, next_token_loss, perplexity

__all__ = ["bits_per_byte", "mean_loss", "next_token_loss", "perplexity"]
