"""Quantized checkpoints of any known layout: what they are, and their values."""

from narrowcast.io.foreign.checkpoint import Checkpoint, open_checkpoint
from narrowcast.io.foreign.dense import write_dense
from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.io.foreign.table import LAYOUTS

__all__ = ["LAYOUTS", "Checkpoint", "ReadWeight", "Reader", "open_checkpoint", "write_dense"]
