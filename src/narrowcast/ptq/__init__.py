"""Floor 6: post-training quantization. Core maths (matrices in, matrices out) apart from plumbing.

A model in memory, in place (batches: token ids, keyword arguments, or functions that run the model):

    found = nc.ptq.quantize_model(model, "w4a16-gptq", batches)

A folder, one block in memory at a time, into a new folder with a report:

    config = nc.ptq.QuantizeConfig(Path("MODEL"), "w4a16-gptq", nc.ptq.CalibrationConfig(data=Path("TEXT")))
    plan = nc.ptq.plan_folder(config)
    report = nc.ptq.quantize_folder(config, Path("MODEL-int4"))
"""

from narrowcast.ptq.adaround import Learned
from narrowcast.ptq.balance import awq, smooth
from narrowcast.ptq.calibration import CalibrationConfig
from narrowcast.ptq.catalogue import recipe, recipes
from narrowcast.ptq.folder import QuantizeConfig, plan_folder, quantize_folder
from narrowcast.ptq.gptq import Solution, Solver, gptq, output_error
from narrowcast.ptq.kv import kv_peaks
from narrowcast.ptq.pipeline import Quantization, quantize_model
from narrowcast.ptq.recipe import CacheScheme, PtqRecipe, Scheme
from narrowcast.ptq.row_search import LeastRowError
from narrowcast.ptq.search import AbsMax, LeastError, LeastOutputError, Percentile, Search

__all__ = [
    "AbsMax",
    "CacheScheme",
    "CalibrationConfig",
    "Learned",
    "LeastError",
    "LeastOutputError",
    "LeastRowError",
    "Percentile",
    "PtqRecipe",
    "Quantization",
    "QuantizeConfig",
    "Scheme",
    "Search",
    "Solution",
    "Solver",
    "awq",
    "gptq",
    "kv_peaks",
    "output_error",
    "plan_folder",
    "quantize_folder",
    "quantize_model",
    "recipe",
    "recipes",
    "smooth",
]
