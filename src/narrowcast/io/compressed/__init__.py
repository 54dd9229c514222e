"""compressed-tensors: the layout that `transformers` and vLLM load."""

from narrowcast.io.compressed.args import served
from narrowcast.io.compressed.layout import CompressedTensors

__all__ = ["CompressedTensors", "served"]
