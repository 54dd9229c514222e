"""Floor 6: what a recipe costs and gains, from measurements and named constants."""

from narrowcast.analysis.footprint import Footprint, footprint, optimizer_traffic
from narrowcast.analysis.noise import NoiseFloor, noise_floor
from narrowcast.analysis.roofline import H100, LLAMA_8B, Gpu, Layer, Prediction, Work, predict
from narrowcast.analysis.sites import OperandLoss, operand_loss, probe

__all__ = [
    "H100",
    "LLAMA_8B",
    "Footprint",
    "Gpu",
    "Layer",
    "NoiseFloor",
    "OperandLoss",
    "Prediction",
    "Work",
    "footprint",
    "noise_floor",
    "operand_loss",
    "optimizer_traffic",
    "predict",
    "probe",
]
