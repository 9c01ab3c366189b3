"""Training: a Trainer for raw map data, its callbacks, learning-rate curves and typed recipes.

The names are imported on first use: a recipe is read and checked before torch and transformers are.
"""

from typing import TYPE_CHECKING

from noise2map.lazy import lazy_names

_PUBLIC = {
    "EmaCallback": "noise2map.training.callbacks",
    "LearningRateCurve": "noise2map.training.optimization",
    "MapTrainer": "noise2map.training.maps.trainer",
    "MetricsCallback": "noise2map.training.callbacks",
    "Recipe": "noise2map.training.maps.recipe",
    "last_checkpoint": "noise2map.runs.run_directory",
    "load_recipe": "noise2map.training.maps.recipe",
    "read_metrics": "noise2map.runs.run_directory",
    "recipe_names": "noise2map.training.recipe_files",
}

__all__ = [
    "EmaCallback",
    "LearningRateCurve",
    "MapTrainer",
    "MetricsCallback",
    "Recipe",
    "last_checkpoint",
    "load_recipe",
    "read_metrics",
    "recipe_names",
]

if TYPE_CHECKING:
    from noise2map.runs.run_directory import last_checkpoint, read_metrics
    from noise2map.training.callbacks import EmaCallback, MetricsCallback
    from noise2map.training.maps.recipe import Recipe, load_recipe
    from noise2map.training.maps.trainer import MapTrainer
    from noise2map.training.optimization import LearningRateCurve
    from noise2map.training.recipe_files import recipe_names

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
