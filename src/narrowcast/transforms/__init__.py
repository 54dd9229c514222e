"""Floor 1: exact changes of basis before a cast."""

from narrowcast.transforms.hadamard import Hadamard, transform

__all__ = ["Hadamard", "transform"]
