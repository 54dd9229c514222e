"""Quantizing while `transformers` loads: ``from_pretrained(path, quantization_config=nc.HFConfig("nvfp4"))``.

Importing this module tells `transformers` of the method ``narrowcast``; `narrowcast.HFConfig` imports it when used.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from narrowcast.errors import InputError
from narrowcast.io.pretrained import layout_for
from narrowcast.models.quiet import quiet
from narrowcast.ptq.catalogue import recipe as recipe_of
from narrowcast.ptq.part import specs_of
from narrowcast.ptq.pipeline import Batch, quantize_model
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.served import in_layout
from narrowcast.ptq.targets import find_targets

with quiet():
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "narrowcast"


@register_quantization_config(METHOD)
class HFConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What a model becomes when `transformers` has loaded its weights.

    Args:
        recipe: a post-training recipe, its name, or the spelling of a cast for all weights.
        calibration: batches as `ptq.quantize_model` takes them, for recipes that look at activations.
        layout: the recipe takes on the conventions of this layout's loaders (``compressed-tensors``), so that
            `narrowcast.save_pretrained` writes what runs; None leaves it as it is.

    The model is quantized in memory, one block after another, and carries its quantized layers.
    Raises InputError for an unknown recipe, and for one that needs calibration and gets none.
    """

    def __init__(
        self,
        recipe: str | PtqRecipe = "w8a8-fp8",
        calibration: Iterable[Batch] = (),
        layout: str | None = None,
        **other: Any,
    ) -> None:
        if "layers" in other:
            raise InputError("the folder is in narrowcast's own layout; load it with nc.load(path)")
        self.quant_method = METHOD
        self.recipe = recipe_of(recipe)
        self.calibration = list(calibration)
        self.layout = layout
        if self.recipe.needs_calibration and not self.calibration:
            raise InputError(f"recipe {self.recipe.name} needs calibration data; give calibration=[token ids, ...]")

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json keeps."""
        return {"quant_method": METHOD, "recipe": self.recipe.name, "layout": self.layout}


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):  # type: ignore[misc]
    """What `transformers` calls: quantizes the model when its weights are there."""

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        config: HFConfig = self.quantization_config
        recipe = config.recipe
        if config.layout is not None:
            targets, _ = find_targets(model, recipe.keep_wide)
            recipe = in_layout(recipe, layout_for(model, specs_of(targets, recipe), config.layout))
        quantize_model(model.eval(), recipe, config.calibration)
        return model

    def is_serializable(self) -> bool:
        """Whether `transformers` may save it: no, `narrowcast.save_pretrained` does."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether the result can be trained: no."""
        return False
