"""Decoders without noise, steps or time, on the features that the map decoder gets: what it is compared with at equal encoder."""

from noise2map.models.single_step.kernel_update import KernelUpdateHead
from noise2map.models.single_step.token_decoders import SINGLE_STEP_DECODERS, KernelFeatures, PyramidPooling, SingleStepDecoder

__all__ = ["SINGLE_STEP_DECODERS", "KernelFeatures", "KernelUpdateHead", "PyramidPooling", "SingleStepDecoder"]
