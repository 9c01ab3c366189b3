"""Scores of sets of samples: proper scoring rules, calibration of the spread, coherence and sharpness."""

from noise2map.metrics.samples.base import SampleScores
from noise2map.metrics.samples.boundaries import boundary_f1, edge_f1, flying_pixels, label_edges
from noise2map.metrics.samples.depth import DepthSampleScores
from noise2map.metrics.samples.label_distances import energy_distance, hungarian_matched_iou, mean_iou_of_maps, pairwise_iou
from noise2map.metrics.samples.layers import LabelSampleScores, LayerSampleScores
from noise2map.metrics.samples.normals import NormalsSampleScores
from noise2map.metrics.samples.ranks import central_coverage, rank_histogram
from noise2map.metrics.samples.row_sums import RowSums
from noise2map.metrics.samples.scales import ConeScores, ScaleScores, laplace_crps, laplace_cumulative, laplace_nll
from noise2map.metrics.samples.scoring_rules import fair_crps, patch_energy_score, variogram_score

__all__ = [
    "ConeScores",
    "DepthSampleScores",
    "LabelSampleScores",
    "LayerSampleScores",
    "NormalsSampleScores",
    "RowSums",
    "SampleScores",
    "ScaleScores",
    "boundary_f1",
    "central_coverage",
    "edge_f1",
    "energy_distance",
    "fair_crps",
    "flying_pixels",
    "hungarian_matched_iou",
    "label_edges",
    "laplace_crps",
    "laplace_cumulative",
    "laplace_nll",
    "mean_iou_of_maps",
    "pairwise_iou",
    "patch_energy_score",
    "rank_histogram",
    "variogram_score",
]
