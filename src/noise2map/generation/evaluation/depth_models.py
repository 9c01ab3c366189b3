"""Depth models under their former names, see `noise2map.inference.depth_models`."""

from noise2map.inference.depth_models import DEFAULT_DEPTH_MODEL as DEFAULT_ESTIMATOR
from noise2map.inference.depth_models import DepthModel as DepthEstimator
from noise2map.inference.depth_models import load_depth_model as make_estimator

__all__ = ["DEFAULT_ESTIMATOR", "DepthEstimator", "make_estimator"]
