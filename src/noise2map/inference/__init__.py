"""Prediction: models on images, folders of images and samples of sensors.

The names are imported on first use: checking a command's words must not cost the import of a model.
"""

from typing import TYPE_CHECKING

from noise2map.lazy import lazy_names

_PUBLIC = {
    "DecodingOptions": "noise2map.models.decoding",
    "Dials": "noise2map.models.decoding",
    "Evaluation": "noise2map.evaluation.evaluate",
    "PredictionOptions": "noise2map.models.decoding",
    "Prediction": "noise2map.tasks.prediction",
    "Predictor": "noise2map.inference.predictor",
    "Protocol": "noise2map.models.decoding",
    "evaluate_model": "noise2map.evaluation.evaluate",
    "load_model": "noise2map.inference.loading",
    "open_dataset": "noise2map.data.opening",
    "predict_folder": "noise2map.inference.folder",
    "protocol_grid": "noise2map.evaluation.protocols",
}

__all__ = [
    "DecodingOptions",
    "Dials",
    "Evaluation",
    "Prediction",
    "PredictionOptions",
    "Predictor",
    "Protocol",
    "evaluate_model",
    "load_model",
    "open_dataset",
    "predict_folder",
    "protocol_grid",
]

if TYPE_CHECKING:
    from noise2map.data.opening import open_dataset
    from noise2map.evaluation.evaluate import Evaluation, evaluate_model
    from noise2map.evaluation.protocols import protocol_grid
    from noise2map.inference.folder import predict_folder
    from noise2map.inference.loading import load_model
    from noise2map.inference.predictor import Predictor
    from noise2map.models.decoding import DecodingOptions, Dials, PredictionOptions, Protocol
    from noise2map.tasks.prediction import Prediction

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
