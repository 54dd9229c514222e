"""Side wing: plain models. Knows nothing of precision."""

from narrowcast.models.language import default_config, from_config, from_folder
from narrowcast.models.quiet import quiet

__all__ = ["default_config", "from_config", "from_folder", "quiet"]
