"""Side wing: plain models. Knows nothing of precision."""

from narrowcast.models.language import default_config, from_config

__all__ = ["default_config", "from_config"]
