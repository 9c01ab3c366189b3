"""Map models: transformers models for dense maps by diffusion."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForImageToImage,
    AutoModelForSemanticSegmentation,
)

from noise2map.models.bev import Noise2MapBevConfig, Noise2MapBevProcessor, Noise2MapForBevSegmentation
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.depth import MapDepthOutput, Noise2MapForDepthEstimation
from noise2map.models.image_processing import Noise2MapImageProcessor
from noise2map.models.initialization import Noise2MapPreTrainedModel
from noise2map.models.map_model import MapModel
from noise2map.models.normals import MapNormalsOutput, Noise2MapForNormalEstimation
from noise2map.models.segmentation import MapSegmenterOutput, Noise2MapForSemanticSegmentation

AutoConfig.register(Noise2MapConfig.model_type, Noise2MapConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(Noise2MapConfig, Noise2MapForSemanticSegmentation, exist_ok=True)
AutoModelForDepthEstimation.register(Noise2MapConfig, Noise2MapForDepthEstimation, exist_ok=True)
AutoModelForImageToImage.register(Noise2MapConfig, Noise2MapForNormalEstimation, exist_ok=True)  # there is none for normals
AutoImageProcessor.register(Noise2MapConfig, slow_image_processor_class=Noise2MapImageProcessor, exist_ok=True)

__all__ = [
    "MapDepthOutput",
    "MapModel",
    "MapNormalsOutput",
    "MapSegmenterOutput",
    "Noise2MapBevConfig",
    "Noise2MapBevProcessor",
    "Noise2MapConfig",
    "Noise2MapForBevSegmentation",
    "Noise2MapForDepthEstimation",
    "Noise2MapForNormalEstimation",
    "Noise2MapForSemanticSegmentation",
    "Noise2MapImageProcessor",
    "Noise2MapPreTrainedModel",
]
