"""Scores one protocol: from the output of the model and the truth to metrics, image by image."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.metrics import (
    DEPTH_SCORES,
    DepthScores,
    ExpectedCalibrationError,
    ProbabilityScores,
    SegmentationScores,
    UncertaintyScores,
    absolute_relative_error,
    depth_is_wrong,
    depth_valid,
    fit_temperature,
    nan_mean,
    segmentation_scores,
)

# Floats of class probabilities at full size that are held at a time.
_CHUNK_FLOATS = 16 * 2**20
_TEMPERATURE_FLOATS = 8 * 2**20


def resize_bilinear(maps: Tensor, *sizes: tuple[int, int]) -> Tensor:
    """Resize maps `(B, C, h, w)` to one size after the other, bilinearly with half-pixel centres."""
    for size in sizes:
        if maps.shape[-2:] != size:
            maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps


class Scorer(ABC):
    """Collects the scores of one protocol.

    Images may come in any order and with maps of any size; `order` remembers which row belongs to which image.
    """

    # The statistics that get confidence intervals, by name.
    statistics: tuple[str, ...]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.order: list[int] = []
        self.steps: list[int] = []
        self.uncertainties: dict[str, UncertaintyScores] = {}
        self.uncertainty_order: dict[str, list[int]] = {}

    @abstractmethod
    def update(
        self, output: Any, average: str, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]
    ) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            average: `"last"` or `"steps"`: whether the logits are logarithms of averaged probabilities.
            processed: Height and width that went into the model.
            indices: Place of each image in the data set.
            truths: True map of each image.
        """

    def _score_uncertainties(
        self, kinds: dict[str, Tensor], error: Tensor, wrong: Tensor, valid: Tensor, indices: Sequence[int]
    ) -> None:
        for name, value in kinds.items():
            if name not in self.uncertainties:
                self.uncertainties[name] = UncertaintyScores(self.error_kind).to(self.device)
                self.uncertainty_order[name] = []
            self.uncertainties[name].update(value, error, wrong, valid)
            self.uncertainty_order[name] += indices

    error_kind: Any

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores of the maps by name."""

    @abstractmethod
    def image_rows(self) -> Tensor:
        """What the bootstrap resamples, `(N, ...)`, in the order of the data set."""

    @abstractmethod
    def image_scores(self) -> dict[str, Tensor]:
        """Scores of every image by name, `(N,)` each, in the order of the data set."""

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """Maps `image_rows` to the values of `statistics`."""
        return nan_mean

    def extras(self) -> dict[str, Any]:
        """What does not fit into a row of a table."""
        return {}

    def uncertainty_rows(self, name: str) -> Tensor:
        """Scores `(N, 12)` of one kind of uncertainty for every image, in the order of the data set."""
        return sort_rows(self.uncertainties[name].per_image().cpu(), self.uncertainty_order[name])


class ImageScorer(Scorer):
    """Scores maps of images, which may be of any size: predictions are resized to that of the truth."""

    def update(
        self, output: Any, average: str, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]
    ) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            average: `"last"` or `"steps"`: whether the logits are logarithms of averaged probabilities.
            processed: Height and width that went into the model.
            indices: Place of each image in the data set.
            truths: True map `(H, W)` of each image; sizes may differ.
        """
        # A checkpoint may ask for too much memory at once: images of one size go together, in chunks.
        for part, size in self._parts(output, [tuple(truth.shape) for truth in truths]):
            truth = torch.stack([truths[i] for i in part]).to(self.device)
            kinds = {
                name: resize_bilinear(value[part, None].float(), processed, size)[:, 0].clamp(0, 1).to(self.device)
                for name, value in (output.uncertainties or {}).items()
            }
            chosen = [indices[i] for i in part]
            self.order += chosen
            self.steps += [int(output.num_steps[i]) for i in part]
            self._update(self._prediction(output, part, average, processed, size), truth, kinds, chosen)

    def _parts(self, output: Any, sizes: list[Any]) -> Iterator[tuple[list[int], tuple[int, int]]]:
        for size in dict.fromkeys(sizes):
            members = [i for i, one in enumerate(sizes) if one == size]
            room = max(1, _CHUNK_FLOATS // (self._channels(output) * size[0] * size[1]))
            for start in range(0, len(members), room):
                yield members[start : start + room], size

    @abstractmethod
    def _channels(self, output: Any) -> int: ...

    @abstractmethod
    def _prediction(
        self, output: Any, part: list[int], average: str, processed: tuple[int, int], size: tuple[int, int]
    ) -> Tensor: ...

    @abstractmethod
    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None: ...


def sort_rows(rows: Tensor, order: list[int]) -> Tensor:
    """Rows `(N, ...)` that came in some order of images, in the order of the data set."""
    return rows[torch.tensor(order).argsort()]


def _floats(scores: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if value.ndim == 0}


class SegmentationScorer(ImageScorer):
    """mIoU, accuracies, calibration, and every kind of uncertainty against the wrong pixels.

    Args:
        id2label: The classes.
        ignore_index: True label of the pixels that do not count.
        device: Where scores are computed.
        temperature_images: If not 0, the number of images to come: keep logits of some pixels of each and fit a
            temperature.
        temperature: The temperature that is already in the logits.
    """

    statistics = ("mIoU", "aAcc", "mAcc")
    error_kind = "binary"

    def __init__(
        self,
        id2label: dict[int, str],
        ignore_index: int,
        device: torch.device,
        temperature_images: int = 0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(device)
        self.id2label, self.ignore_index = id2label, ignore_index
        self.maps = SegmentationScores(len(id2label), ignore_index).to(device)
        self.calibration = ExpectedCalibrationError().to(device)
        self.probabilities = ProbabilityScores(ignore_index).to(device)
        self.pixels, self.temperature = 0, temperature
        if temperature_images:
            self.pixels = max(16, min(2048, _TEMPERATURE_FLOATS // (temperature_images * len(id2label))))
        self._kept: list[tuple[Tensor, Tensor]] = []

    def _channels(self, output: Any) -> int:
        return output.logits.shape[1]

    def _prediction(self, output: Any, part: list[int], average: str, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        logits = output.logits[part].float()
        if average == "steps":  # averaged probabilities are resized as probabilities
            smallest = torch.finfo(logits.dtype).tiny
            return resize_bilinear(logits.exp(), processed, size).clamp_min(smallest).log().to(self.device)
        return resize_bilinear(logits, processed, size).to(self.device)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        probabilities = prediction.softmax(1)
        confidence, labels = probabilities.max(1)
        known = truth != self.ignore_index
        wrong = labels != truth
        self.maps.update(labels, truth)
        self.calibration.update(confidence, ~wrong, known)
        self.probabilities.update(probabilities, truth)
        # What every classifier has for nothing: the one to beat.
        kinds = {"least_confidence": (1 - confidence).clamp(0, 1), **kinds}
        self._score_uncertainties(kinds, wrong, wrong, known, indices)
        if self.pixels:
            self._keep_pixels(prediction, truth, known, indices)

    def _keep_pixels(self, logits: Tensor, truth: Tensor, known: Tensor, indices: list[int]) -> None:
        for values, labels, mask, index in zip(logits.flatten(2), truth.flatten(1), known.flatten(1), indices):
            places = mask.nonzero()[:, 0].cpu()
            order = torch.randperm(len(places), generator=torch.Generator().manual_seed(index))[: self.pixels]
            chosen = places[order].to(values.device)
            self._kept.append((values[None, :, None, chosen].cpu(), labels[None, None, chosen].cpu()))

    def fitted_temperature(self) -> float:
        """The `config.temperature` that minimises the negative log likelihood of the images seen."""
        ordered = [self._kept[i] for i in torch.tensor(self.order).argsort().tolist()]
        logits, labels = [z for z, _ in ordered], [y for _, y in ordered]
        return self.temperature * fit_temperature(logits, labels, self.ignore_index, self.pixels)

    def scores(self) -> dict[str, float]:
        """`mIoU`, `aAcc`, `mAcc`, `ece`, `adaptive_ece`, `mce`, `mean_confidence`, `brier`, `nll`."""
        found = _floats(self.maps.compute()) | _floats(self.calibration.compute()) | _floats(self.probabilities.compute())
        found.pop("accuracy")  # the same as aAcc
        if self.pixels:
            found["fitted_temperature"] = self.fitted_temperature()
        return found

    def image_rows(self) -> Tensor:
        """Counts `(N, 3, K)`."""
        return sort_rows(self.maps.per_image().cpu(), self.order)

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """mIoU, aAcc and mAcc of the images together."""

        def scores_of(counts: Tensor) -> Tensor:
            scores = segmentation_scores(counts.sum(0))
            return torch.stack([scores[name] for name in self.statistics])

        return scores_of

    def image_scores(self) -> dict[str, Tensor]:
        """mIoU, aAcc and mAcc of every image on its own."""
        scores = segmentation_scores(self.image_rows())
        return {name: scores[name] for name in self.statistics}

    def extras(self) -> dict[str, Any]:
        """IoU and accuracy of each class, and the reliability diagram."""
        scores, diagram = self.maps.compute(), self.calibration.reliability()
        classes = {self.id2label[k]: {"IoU": float(scores["IoU"][k]), "Acc": float(scores["Acc"][k])} for k in self.id2label}
        return {"classes": classes, "reliability": {name: value.tolist() for name, value in diagram.items()}}


class DepthScorer(ImageScorer):
    """The nine depth scores, and every kind of uncertainty against the absolute relative error.

    Args:
        min_depth: Truth and prediction are scored above this, metres.
        max_depth: And below this.
        model_range: The model's own range, to which its output is clamped before it is resized, metres.
        device: Where scores are computed.
    """

    statistics = DEPTH_SCORES
    error_kind = "continuous"

    def __init__(self, min_depth: float, max_depth: float, model_range: tuple[float, float], device: torch.device) -> None:
        super().__init__(device)
        self.range, self.model_range = (min_depth, max_depth), model_range
        self.maps = DepthScores(min_depth, max_depth).to(device)
        self.pooled = DepthScores(min_depth, max_depth, average="pixel", keep_per_image=False).to(device)

    def _channels(self, output: Any) -> int:
        return 1

    def _prediction(self, output: Any, part: list[int], average: str, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        depth_m = output.predicted_depth[part, None].float().clamp(*self.model_range)
        return resize_bilinear(depth_m, processed, size)[:, 0].to(self.device)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        self.maps.update(prediction, truth)
        self.pooled.update(prediction, truth)
        valid = depth_valid(truth, *self.range)
        prediction, truth = prediction.clamp(*self.range), torch.where(valid, truth, 1)
        error, wrong = absolute_relative_error(prediction, truth), depth_is_wrong(prediction, truth)
        self._score_uncertainties(kinds, error, wrong, valid, indices)

    def scores(self) -> dict[str, float]:
        """The nine scores, averaged over images."""
        return _floats(self.maps.compute())

    def image_rows(self) -> Tensor:
        """Scores `(N, 9)`."""
        return sort_rows(self.maps.per_image().cpu(), self.order)

    def image_scores(self) -> dict[str, Tensor]:
        """The nine scores of every image."""
        return dict(zip(DEPTH_SCORES, self.image_rows().unbind(1)))

    def extras(self) -> dict[str, Any]:
        """The same scores pooled over pixels, which some papers report."""
        return {"pooled": _floats(self.pooled.compute())}
