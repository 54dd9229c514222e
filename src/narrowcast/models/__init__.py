"""Side wing: plain models. Knows nothing of precision."""

from narrowcast.models.language import compiled, default_config, from_config, plain_causal
from narrowcast.models.quiet import quiet
from narrowcast.models.vision import CifarResNet, SmallCnn, SmallVit, cifar_resnet

__all__ = [
    "CifarResNet",
    "SmallCnn",
    "SmallVit",
    "cifar_resnet",
    "compiled",
    "default_config",
    "from_config",
    "plain_causal",
    "quiet",
]
