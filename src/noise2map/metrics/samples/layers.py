"""Scores of sets of class maps and of sets of layers that may overlap."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.samples.base import PATCH, SampleScores
from noise2map.metrics.samples.boundaries import edge_f1, label_edges
from noise2map.metrics.samples.label_distances import energy_distance, mean_iou_of_maps, pairwise_iou
from noise2map.metrics.samples.row_sums import image_mean

_TERMS = ("ged_pixel", "ged_iou", "hm_iou", "wrong_sample", "wrong_best", "boundary_f1", "edge_share", "edge_share_truth")


class _MembershipScores(SampleScores):
    """What class maps and layers have in common: every pixel is a member of some of K classes.

    Args:
        num_classes: K.
        num_samples: R.
        ignore_index: True label of the pixels that do not count.
        patch: Side of a patch of the energy score, pixels.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    names = (*SampleScores.names, *_TERMS, "edge_ratio", "mIoU_sample", "mIoU_best")

    def __init__(
        self,
        num_classes: int,
        num_samples: int,
        ignore_index: int = 255,
        patch: int = PATCH,
        keep_per_image: bool = True,
        **kwargs: Any,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        ious = tuple(f"{kind}{k}" for kind in ("iou_sample", "iou_best") for k in range(num_classes))
        super().__init__((*_TERMS, *ious), num_samples, patch, keep_per_image, **kwargs)

    @abstractmethod
    def _members(self, maps: Tensor, known: Tensor, k: int) -> Tensor:
        """Which known pixels of maps ``(B, S, ...)`` belong to class k: ``(B, S, P)``, bool."""

    def _score(self, samples: Tensor, truth: Tensor, known: Tensor, valid: Tensor) -> None:
        """Adds a batch of samples ``(B, R, ...)``, truth and what is known of it ``(B, ...)``; pixels that count ``(B, H, W)``."""
        count = self.num_samples
        together = torch.cat([samples, truth[:, None]], 1)
        common, union = [], []  # of every pair of the R samples and the truth, for each class
        for k in range(self.num_classes):
            members = self._members(together, known, k)
            pair = pairwise_iou(members, members)
            common.append(pair[0])
            union.append(pair[1])
        common_, union_ = torch.stack(common, -1), torch.stack(union, -1)  # (B, R + 1, R + 1, K)
        iou = mean_iou_of_maps(common_, union_)
        number = known.flatten(1).sum(1).double()

        def wrong(a: Tensor, b: Tensor) -> Tensor:
            return ((a != b) & known).flatten(1).sum(1).double() / number.clamp_min(1)

        differ = torch.stack([torch.stack([wrong(a, b) for a in together.unbind(1)], -1) for b in together.unbind(1)], -1)
        to_truth = differ[:, :count, count]  # (B, R)
        edge, pairs = label_edges(truth, known)
        of_samples = [label_edges(samples[:, r], known)[0] for r in range(count)]
        share = torch.stack([one.sum(1).double() for one in of_samples]).mean(0)
        one_truth, among = slice(count, None), slice(count)
        terms = {
            "ged_pixel": image_mean(energy_distance(differ[:, among, one_truth], differ[:, among, among]), number),
            "ged_iou": image_mean(energy_distance(1 - iou[:, among, one_truth], 1 - iou[:, among, among]), number),
            "hm_iou": image_mean(iou[:, among, count].mean(-1), number),
            "wrong_sample": image_mean(to_truth.mean(1), number),
            "wrong_best": image_mean(to_truth.min(1).values, number),
            "boundary_f1": image_mean(torch.stack([edge_f1(one, edge) for one in of_samples]).mean(0), number),
            "edge_share": (share, pairs.sum(1).double()),
            "edge_share_truth": (edge.sum(1).double(), pairs.sum(1).double()),
        }
        best = to_truth.argmin(1)
        rows = torch.arange(len(best), device=best.device)
        for k in range(self.num_classes):
            terms[f"iou_sample{k}"] = (common_[:, :count, count, k].sum(1), union_[:, :count, count, k].sum(1))
            terms[f"iou_best{k}"] = (common_[rows, best, count, k], union_[rows, best, count, k])
        self._add(samples, truth, valid, terms)

    def _own_scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {name: means[name] for name in _TERMS}
        found["edge_ratio"] = means["edge_share"] / means["edge_share_truth"]
        for kind in ("sample", "best"):
            found[f"mIoU_{kind}"] = torch.stack([means[f"iou_{kind}{k}"] for k in range(self.num_classes)], -1).nanmean(-1)
        return found


class LabelSampleScores(_MembershipScores):
    """Scores of R class maps of each image.

    A class map is a vector of ones and zeros, so that two pixels of different classes have the squared distance 2. Beside the
    scores of `SampleScores`, over images unless said otherwise:

    - `ged_pixel`, `ged_iou`: squared generalised energy distance, over pairs of different samples; of the share of pixels that
      differ, and of ``1 - IoU`` (classes that either map holds, background like others). See `energy_distance`.
    - `hm_iou`: IoU of samples and truths matched one to one; with the one truth of a photograph, the mean IoU of a sample.
    - `wrong_sample`, `wrong_best`: share of wrong pixels of a sample, and of the best of R; compare them at equal R only.
    - `mIoU_sample`, `mIoU_best`: mIoU pooled over images, of all samples and of the best of each image (fewest wrong pixels).
    - `boundary_f1`: F1 of a sample's label edges, without tolerance in place.
    - `edge_share`, `edge_share_truth`, `edge_ratio`: share of neighbors with different labels, pooled over pixels: above 1 ragged,
      below 1 too smooth.

    Args:
        num_classes: K.
        num_samples: R.
        ignore_index: True label of the pixels that do not count.
        patch: Side of a patch of the energy score, pixels.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a number is below 1.
    """

    def square(self, a: Tensor, b: Tensor) -> Tensor:
        """See `SampleScores.square`: 2 where classes differ."""
        return 2.0 * (a != b)

    def _members(self, maps: Tensor, known: Tensor, k: int) -> Tensor:
        return ((maps == k) & known[:, None]).flatten(2)

    def update(self, samples: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            samples: Class ids ``(B, R, H, W)``.
            labels: True class ids ``(B, H, W)``.
            valid: Further mask ``(B, H, W)``, bool.

        Raises:
            ValueError: If the shapes do not fit or a label that counts is outside ``0..K-1``.
        """
        self._check(samples, labels)
        known = labels.long() != self.ignore_index
        known = known if valid is None else known & valid
        for name, ids in (("label", labels[:, None]), ("sampled label", samples)):
            wrong = known[:, None] & ((ids < 0) | (ids >= self.num_classes))
            if bool(wrong.any()):
                raise ValueError(f"a {name} is {int(ids[wrong.expand_as(ids)][0])}; expected 0..{self.num_classes - 1}")
        self._score(samples, labels.to(samples.dtype), known, known)


class LayerSampleScores(_MembershipScores):
    """Scores of R maps of K layers that may overlap, 0 or 1 each; the scores are those of `LabelSampleScores`.

    Shares of wrong pixels and of edges are of all layers together; IoU is averaged over the layers that either map holds.

    Args:
        num_classes: K layers.
        num_samples: R.
        ignore_index: True value where nobody knows.
        patch: Side of a patch of the energy score, cells.
        keep_per_image: Keep a row of sums for each sample.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a number is below 1.
    """

    def square(self, a: Tensor, b: Tensor) -> Tensor:
        """See `SampleScores.square`: the number of layers that differ."""
        return (a != b).float().sum(-3)

    def _members(self, maps: Tensor, known: Tensor, k: int) -> Tensor:
        return ((maps[:, :, k] == 1) & known[:, None, k]).flatten(2)

    def update(self, samples: Tensor, layers: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            samples: ``(B, R, K, X, Y)``, 0 or 1.
            layers: Truth ``(B, K, X, Y)``: 0, 1, or `ignore_index`.
            valid: Further mask ``(B, X, Y)``, bool.

        Raises:
            ValueError: If the shapes do not fit or a value is not 0 or 1.
        """
        self._check(samples, layers)
        if layers.shape[1] != self.num_classes:
            raise ValueError(f"maps have {layers.shape[1]} layers; expected {self.num_classes}")
        known = layers.long() != self.ignore_index
        known = known if valid is None else known & valid[:, None]
        for name, values in (("layer", layers[:, None]), ("sampled layer", samples)):
            wrong = known[:, None] & (values != 0) & (values != 1)
            if bool(wrong.any()):
                raise ValueError(f"a {name} holds {float(values[wrong.expand_as(values)][0])}; expected 0 or 1")
        # what nobody knows is nobody's error
        truth = torch.where(known, layers, 0).to(samples.dtype)
        self._score(torch.where(known[:, None], samples, 0), truth, known, known.any(1))
