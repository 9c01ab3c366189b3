"""Scores of maps and of their uncertainty, as torchmetrics classes: streaming, distributed, memory bounded."""

import importlib
from typing import TYPE_CHECKING, Any

# Name: its module. Those that are asked for are imported: torchmetrics brings plots and signals, and a prediction needs none.
_PUBLIC = {
    "ANGLE_THRESHOLDS": "noise2map.metrics.normals",
    "BEV_THRESHOLDS": "noise2map.metrics.bev",
    "BevScores": "noise2map.metrics.bev",
    "DEPTH_SCORES": "noise2map.metrics.depth",
    "DepthFeatures": "noise2map.metrics.features",
    "DepthFrechetDistance": "noise2map.metrics.fid",
    "DepthScores": "noise2map.metrics.depth",
    "Distance": "noise2map.metrics.fid",
    "EYE_HEIGHT_M": "noise2map.metrics.room_geometry",
    "ExpectedCalibrationError": "noise2map.metrics.calibration",
    "FeatureExtractor": "noise2map.metrics.features",
    "FeatureStatistics": "noise2map.metrics.feature_distances",
    "FrechetDistance": "noise2map.metrics.fid",
    "Interval": "noise2map.metrics.intervals",
    "KernelDistance": "noise2map.metrics.fid",
    "NORMALS_SCORES": "noise2map.metrics.normals",
    "NormalsScores": "noise2map.metrics.normals",
    "PLAUSIBILITY_SCORES": "noise2map.metrics.plausibility",
    "PlausibilityScores": "noise2map.metrics.plausibility",
    "ProbabilityScores": "noise2map.metrics.calibration",
    "ROOM_SCORES": "noise2map.metrics.room_geometry",
    "SegmentationScores": "noise2map.metrics.segmentation",
    "UNCERTAINTY_SCORES": "noise2map.metrics.uncertainty",
    "UncertaintyScores": "noise2map.metrics.uncertainty",
    "absolute_relative_error": "noise2map.metrics.depth",
    "angular_error": "noise2map.metrics.normals",
    "bev_counts": "noise2map.metrics.bev",
    "bev_scores": "noise2map.metrics.bev",
    "bootstrap_interval": "noise2map.metrics.intervals",
    "bootstrap_intervals": "noise2map.metrics.intervals",
    "centered_interval": "noise2map.metrics.intervals",
    "confusion_matrix": "noise2map.metrics.segmentation",
    "counts_from_confusion": "noise2map.metrics.segmentation",
    "depth_correlation": "noise2map.metrics.plausibility",
    "depth_disagreement": "noise2map.metrics.plausibility",
    "depth_is_wrong": "noise2map.metrics.depth",
    "depth_valid": "noise2map.metrics.depth",
    "edge_alignment": "noise2map.metrics.plausibility",
    "extrapolated_distance": "noise2map.metrics.feature_resampling",
    "feature_distance": "noise2map.metrics.feature_resampling",
    "fit_confidences": "noise2map.metrics.calibration",
    "fit_temperature": "noise2map.metrics.calibration",
    "frechet_distance": "noise2map.metrics.feature_distances",
    "kernel_distance": "noise2map.metrics.feature_distances",
    "mean_accuracy": "noise2map.metrics.segmentation",
    "mean_iou": "noise2map.metrics.segmentation",
    "nan_mean": "noise2map.metrics.intervals",
    "normals_valid": "noise2map.metrics.normals",
    "paired_bootstrap_interval": "noise2map.metrics.intervals",
    "paired_bootstrap_intervals": "noise2map.metrics.intervals",
    "pixel_accuracy": "noise2map.metrics.segmentation",
    "plane_residual": "noise2map.metrics.plausibility",
    "render_depth": "noise2map.metrics.features",
    "resampled_distances": "noise2map.metrics.feature_resampling",
    "room_scores": "noise2map.metrics.room_geometry",
    "seed_interval": "noise2map.metrics.intervals",
    "segmentation_scores": "noise2map.metrics.segmentation",
}

__all__ = [
    "ANGLE_THRESHOLDS",
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
    "fit_confidences",
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

if TYPE_CHECKING:
    from noise2map.metrics.bev import BEV_THRESHOLDS, BevScores, bev_counts, bev_scores
    from noise2map.metrics.calibration import ExpectedCalibrationError, ProbabilityScores, fit_confidences, fit_temperature
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
    from noise2map.metrics.normals import ANGLE_THRESHOLDS, NORMALS_SCORES, NormalsScores, angular_error, normals_valid
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


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name == "samples":
        return importlib.import_module(f"{__name__}.samples")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
