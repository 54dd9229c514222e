"""Floor 6: files. Atomic, checksummed, and read with suspicion."""

from narrowcast.io.checkpoint import check_fit, load_checkpoint, save_checkpoint
from narrowcast.io.files import sha256, write_atomic
from narrowcast.io.huggingface import load_model, save_model
from narrowcast.io.provenance import versions
from narrowcast.io.quantized import LayerSpec, Layout, QuantizedLayer, remember, remembered
from narrowcast.io.runs import append_metrics, check_run, open_run, read_settings, truncate_metrics
from narrowcast.io.tensors import TensorFile, open_tensors, write_like

__all__ = [
    "LayerSpec",
    "Layout",
    "QuantizedLayer",
    "TensorFile",
    "append_metrics",
    "check_fit",
    "check_run",
    "load_checkpoint",
    "load_model",
    "open_run",
    "open_tensors",
    "read_settings",
    "remember",
    "remembered",
    "save_checkpoint",
    "save_model",
    "sha256",
    "truncate_metrics",
    "versions",
    "write_atomic",
    "write_like",
]
