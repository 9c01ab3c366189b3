"""Scores of sets of samples: proper scoring rules, calibration of the spread, coherence and sharpness."""

from typing import TYPE_CHECKING

from noise2map.lazy import lazy_names

# Name: its module. Those that are asked for are imported: torchmetrics brings plots and signals, and a prediction needs none.
_PUBLIC = {
    "ConeScores": "noise2map.metrics.samples.scales",
    "DepthSampleScores": "noise2map.metrics.samples.depth",
    "LabelSampleScores": "noise2map.metrics.samples.layers",
    "LayerSampleScores": "noise2map.metrics.samples.layers",
    "NormalsSampleScores": "noise2map.metrics.samples.normals",
    "RowSums": "noise2map.metrics.samples.row_sums",
    "SampleScores": "noise2map.metrics.samples.base",
    "ScaleScores": "noise2map.metrics.samples.scales",
    "boundary_f1": "noise2map.metrics.samples.boundaries",
    "central_coverage": "noise2map.metrics.samples.ranks",
    "edge_f1": "noise2map.metrics.samples.boundaries",
    "energy_distance": "noise2map.metrics.samples.label_distances",
    "fair_crps": "noise2map.metrics.samples.scoring_rules",
    "flying_pixels": "noise2map.metrics.samples.boundaries",
    "hungarian_matched_iou": "noise2map.metrics.samples.label_distances",
    "label_edges": "noise2map.metrics.samples.boundaries",
    "laplace_crps": "noise2map.metrics.samples.scales",
    "laplace_cumulative": "noise2map.metrics.samples.scales",
    "laplace_nll": "noise2map.metrics.samples.scales",
    "mean_iou_of_maps": "noise2map.metrics.samples.label_distances",
    "pairwise_iou": "noise2map.metrics.samples.label_distances",
    "patch_energy_score": "noise2map.metrics.samples.scoring_rules",
    "rank_histogram": "noise2map.metrics.samples.ranks",
    "variogram_score": "noise2map.metrics.samples.scoring_rules",
}

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

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC, ("scales",))
