"""Views of a tensor's axes."""

from torch import Tensor


def split_axis(x: Tensor, axis: int, size: int) -> Tensor:
    """View ``axis`` (negative) of ``x`` as runs of ``size``: ``[..., n, ...] -> [..., n / size, size, ...]``."""
    split: Tensor = x.unflatten(axis, (x.shape[axis] // size, size))
    return split
