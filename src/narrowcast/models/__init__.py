"""Side wing: plain models. Knows nothing of precision."""

from narrowcast.models.language import default_config, from_config
from narrowcast.models.quiet import quiet
from narrowcast.models.vision import CifarResNet, SmallCnn, SmallVit, cifar_resnet

__all__ = [
    "CifarResNet",
    "SmallCnn",
    "SmallVit",
    "cifar_resnet",
    "default_config",
    "from_config",
    "quiet",
]
