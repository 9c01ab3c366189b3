"""Depth-aware guidance of image diffusion (DAG), on any diffusers `UNet2DModel`; needs no map model."""

from noise2map.guidance.config import GuidanceConfig
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import DepthPrior, PriorLoss, draw_tau
from noise2map.guidance.features import UNetFeatureTap, decoder_blocks, unet_signature
from noise2map.guidance.gradient import guided_prediction
from noise2map.guidance.losses import ConsistencyLoss, GuidanceLoss, consistency_loss, prior_loss
from noise2map.guidance.outputs import DepthGuidedPipelineOutput
from noise2map.guidance.pipeline import DepthGuidedPipeline
from noise2map.guidance.scheduler_step import guided_step

__all__ = [
    "ConsistencyLoss",
    "DepthGuidedPipeline",
    "DepthGuidedPipelineOutput",
    "DepthPredictor",
    "DepthPrior",
    "GuidanceConfig",
    "GuidanceLoss",
    "PriorLoss",
    "UNetFeatureTap",
    "consistency_loss",
    "decoder_blocks",
    "draw_tau",
    "guided_prediction",
    "guided_step",
    "prior_loss",
    "unet_signature",
]
