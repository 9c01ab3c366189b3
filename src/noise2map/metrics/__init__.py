"""Scores of maps and of their uncertainty, as torchmetrics classes: streaming, distributed, memory bounded."""

from noise2map.metrics.bev import BEV_THRESHOLDS, BevScores, bev_counts, bev_scores
from noise2map.metrics.bootstrap import (
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    nan_mean,
    paired_bootstrap_interval,
    paired_bootstrap_intervals,
)
from noise2map.metrics.calibration import UNCERTAINTY_SCORES, UncertaintyScores
from noise2map.metrics.depth import DEPTH_SCORES, DepthScores, absolute_relative_error, depth_is_wrong, depth_valid
from noise2map.metrics.probabilities import ExpectedCalibrationError, ProbabilityScores
from noise2map.metrics.segmentation import (
    SegmentationScores,
    confusion_matrix,
    counts_from_confusion,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    segmentation_scores,
)
from noise2map.metrics.temperature import fit_temperature

__all__ = [
    "BEV_THRESHOLDS",
    "DEPTH_SCORES",
    "UNCERTAINTY_SCORES",
    "BevScores",
    "DepthScores",
    "ExpectedCalibrationError",
    "Interval",
    "ProbabilityScores",
    "SegmentationScores",
    "UncertaintyScores",
    "absolute_relative_error",
    "bev_counts",
    "bev_scores",
    "bootstrap_interval",
    "bootstrap_intervals",
    "confusion_matrix",
    "counts_from_confusion",
    "depth_is_wrong",
    "depth_valid",
    "fit_temperature",
    "mean_accuracy",
    "mean_iou",
    "nan_mean",
    "paired_bootstrap_interval",
    "paired_bootstrap_intervals",
    "pixel_accuracy",
    "segmentation_scores",
]
