"""Float32 throughout: plain PyTorch, nothing converted."""

from narrowcast.recipes.recipe import Recipe

RECIPE = Recipe(
    name="fp32",
    summary="float32 throughout: plain PyTorch, the yardstick",
    paper="IEEE 754-2019",
)
