"""Scores of maps and of their uncertainty, as torchmetrics classes: streaming, distributed, memory bounded."""

from noise2map.metrics.bev import BEV_THRESHOLDS, BevScores, bev_counts, bev_scores
from noise2map.metrics.calibration import ExpectedCalibrationError, ProbabilityScores, fit_temperature
from noise2map.metrics.depth import DEPTH_SCORES, DepthScores, absolute_relative_error, depth_is_wrong, depth_valid
from noise2map.metrics.feature_distances import FeatureStatistics, frechet_distance, kernel_distance
from noise2map.metrics.feature_resampling import extrapolated_distance, feature_distance, resampled_distances
from noise2map.metrics.features import DepthFeatures, FeatureExtractor, render_depth
from noise2map.metrics.fid import DepthFrechetDistance, Distance, FrechetDistance, KernelDistance
from noise2map.metrics.intervals import (
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    centered_interval,
    nan_mean,
    paired_bootstrap_interval,
    paired_bootstrap_intervals,
    seed_interval,
)
from noise2map.metrics.normals import NORMALS_SCORES, NormalsScores, angular_error, normals_valid
from noise2map.metrics.plausibility import (
    PLAUSIBILITY_SCORES,
    PlausibilityScores,
    depth_correlation,
    depth_disagreement,
    edge_alignment,
    plane_residual,
)
from noise2map.metrics.room_geometry import EYE_HEIGHT_M, ROOM_SCORES, room_scores
from noise2map.metrics.segmentation import (
    SegmentationScores,
    confusion_matrix,
    counts_from_confusion,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    segmentation_scores,
)
from noise2map.metrics.uncertainty import UNCERTAINTY_SCORES, UncertaintyScores

__all__ = [
    "BEV_THRESHOLDS",
    "DEPTH_SCORES",
    "EYE_HEIGHT_M",
    "NORMALS_SCORES",
    "PLAUSIBILITY_SCORES",
    "ROOM_SCORES",
    "UNCERTAINTY_SCORES",
    "BevScores",
    "DepthFeatures",
    "DepthFrechetDistance",
    "DepthScores",
    "Distance",
    "ExpectedCalibrationError",
    "FeatureExtractor",
    "FeatureStatistics",
    "FrechetDistance",
    "Interval",
    "KernelDistance",
    "NormalsScores",
    "PlausibilityScores",
    "ProbabilityScores",
    "SegmentationScores",
    "UncertaintyScores",
    "absolute_relative_error",
    "angular_error",
    "bev_counts",
    "bev_scores",
    "bootstrap_interval",
    "bootstrap_intervals",
    "centered_interval",
    "confusion_matrix",
    "counts_from_confusion",
    "depth_correlation",
    "depth_disagreement",
    "depth_is_wrong",
    "depth_valid",
    "edge_alignment",
    "extrapolated_distance",
    "feature_distance",
    "fit_temperature",
    "frechet_distance",
    "kernel_distance",
    "mean_accuracy",
    "mean_iou",
    "nan_mean",
    "normals_valid",
    "paired_bootstrap_interval",
    "paired_bootstrap_intervals",
    "pixel_accuracy",
    "plane_residual",
    "render_depth",
    "resampled_distances",
    "room_scores",
    "seed_interval",
    "segmentation_scores",
]
