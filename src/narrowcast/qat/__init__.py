"""Floor 6: quantization-aware training: the forward pass sees narrow numbers, the gradient passes straight through."""

from narrowcast.qat.straight_through import Plan, finish, prepare, straight_through

__all__ = ["Plan", "finish", "prepare", "straight_through"]
