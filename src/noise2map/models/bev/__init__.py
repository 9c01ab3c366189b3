"""Bird's-eye-view maps from cameras and LiDAR."""

from transformers import AutoConfig, AutoModelForSemanticSegmentation

from noise2map.models.bev.configuration import BEV_LAYERS, Noise2MapBevConfig
from noise2map.models.bev.model import BevSegmenterOutput, Noise2MapForBevSegmentation
from noise2map.models.bev.processor import Noise2MapBevProcessor
from noise2map.models.bev.rig import CameraRig

AutoConfig.register(Noise2MapBevConfig.model_type, Noise2MapBevConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(Noise2MapBevConfig, Noise2MapForBevSegmentation, exist_ok=True)

__all__ = [
    "BEV_LAYERS",
    "BevSegmenterOutput",
    "CameraRig",
    "Noise2MapBevConfig",
    "Noise2MapBevProcessor",
    "Noise2MapForBevSegmentation",
]
