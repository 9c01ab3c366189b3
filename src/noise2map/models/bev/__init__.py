"""Bird's-eye-view maps from cameras and LiDAR."""

from noise2map.models.bev.cameras import CameraRig
from noise2map.models.bev.configuration import BEV_LAYERS, Noise2MapBevConfig
from noise2map.models.bev.modeling import BevSegmenterOutput, Noise2MapForBevSegmentation

__all__ = ["BEV_LAYERS", "BevSegmenterOutput", "CameraRig", "Noise2MapBevConfig", "Noise2MapForBevSegmentation"]
