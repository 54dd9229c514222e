"""Floor 4: what stands between the gemms of a training step, ending in codes of both orientations."""

from narrowcast.passes.both import How, Two, quantize_both, turned
from narrowcast.passes.fused import (
    add_rms_norm_both,
    gelu_backward_both,
    gelu_both,
    rms_norm_backward_both,
    rms_norm_both,
    stacked_both,
    swiglu_backward_both,
    swiglu_both,
)
from narrowcast.passes.later import later
from narrowcast.passes.saved import saved_gradients
from narrowcast.passes.wide import (
    add_rms_norm,
    gelu,
    gelu_backward,
    rms_norm,
    rms_norm_backward,
    sigmoid,
    smooth_scale,
    swiglu,
    swiglu_backward,
)

__all__ = [
    "How",
    "Two",
    "add_rms_norm",
    "add_rms_norm_both",
    "gelu",
    "gelu_backward",
    "gelu_backward_both",
    "gelu_both",
    "later",
    "quantize_both",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_backward_both",
    "rms_norm_both",
    "saved_gradients",
    "sigmoid",
    "smooth_scale",
    "stacked_both",
    "swiglu",
    "swiglu_backward",
    "swiglu_backward_both",
    "swiglu_both",
    "turned",
]
