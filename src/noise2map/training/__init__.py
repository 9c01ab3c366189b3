"""Training: a Trainer for raw map data, its callbacks, learning-rate curves and typed recipes."""

from noise2map.training.callbacks import EmaCallback, MetricsCallback
from noise2map.training.recipes import Recipe, load_recipe, recipe_names
from noise2map.training.run_directory import last_checkpoint, read_metrics
from noise2map.training.schedules import LearningRateCurve
from noise2map.training.trainer import MapTrainer

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
