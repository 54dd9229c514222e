"""Floor 7: what a model is worth, and what one model lost against another, with the noise said beside it."""

from narrowcast.evaluate.findings import Comparison, Finding
from narrowcast.evaluate.folder import evaluate_folder
from narrowcast.evaluate.language import Predictions, compare_language, language_findings, predictions
from narrowcast.evaluate.layers import LayerDamage, layer_damage
from narrowcast.evaluate.rounded import in_bfloat16

__all__ = [
    "Comparison",
    "Finding",
    "LayerDamage",
    "Predictions",
    "compare_language",
    "evaluate_folder",
    "in_bfloat16",
    "language_findings",
    "layer_damage",
    "predictions",
]
