"""Class maps of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map import metrics
from noise2map.data.images import open_class_map
from noise2map.metrics.conformal import conformal_threshold, naive_sets
from noise2map.models import MapSegmenterOutput, Noise2MapForSemanticSegmentation
from noise2map.models.distributions.calibration import Calibration, likely_classes
from noise2map.models.image_processing import resized_argmax
from noise2map.models.resizing import resize_logits, resize_map, resized_strips
from noise2map.report.palettes import IGNORE_COLOR, colorize_labels
from noise2map.report.panels import Panel, segmentation_panel
from noise2map.runs.files import encode_image
from noise2map.tasks.base import ImageTask
from noise2map.tasks.calibrating import SET_LEVELS, Calibrator, DrawnPixels, check_pixels, confidence_error, error_auroc
from noise2map.tasks.prediction import Prediction
from noise2map.tasks.scoring import ImageScorer, Scorer, ScoringOptions, as_floats, scoring_device, sort_rows

_TEMPERATURE_FLOATS = 8 * 2**20


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
        self.maps = metrics.SegmentationScores(len(id2label), ignore_index).to(device)
        self.calibration = metrics.ExpectedCalibrationError().to(device)
        self.probabilities = metrics.ProbabilityScores(ignore_index).to(device)
        self.pixels, self.temperature = 0, temperature
        if temperature_images:
            self.pixels = max(16, min(2048, _TEMPERATURE_FLOATS // (temperature_images * len(id2label))))
        self._kept: list[tuple[Tensor, Tensor]] = []

    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        flag = bool(output.log_probabilities)
        return resize_logits(output.logits[part].float(), processed, size, log_probabilities=flag).to(self.device)

    def masked(self, truth: Tensor, region: Tensor) -> Tensor:
        """See `Scorer.masked`."""
        return torch.where(region, truth, self.ignore_index)

    def _update_samples(
        self, samples: Tensor, processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        count = samples.shape[1]
        drawn = torch.stack([self._sampled_labels(one, processed, size) for one in samples.unbind(1)], 1)
        self._add_sums(
            "",
            lambda: metrics.samples.LabelSampleScores(len(self.id2label), count, self.ignore_index),
            indices,
            drawn.to(self.device),
            truth,
        )

    def _sampled_labels(self, logits: Tensor, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return resize_logits(logits.float(), processed, size).argmax(1)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        probabilities = prediction.softmax(1)
        confidence, labels = probabilities.max(1)
        known = truth != self.ignore_index
        wrong = labels != truth
        self.maps.update(labels, truth)
        self.calibration.update(confidence, ~wrong, known)
        self.probabilities.update(probabilities, truth)
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
        return self.temperature * metrics.fit_temperature(logits, labels, self.ignore_index, self.pixels)

    def scores(self) -> dict[str, float]:
        """`mIoU`, `aAcc`, `mAcc`, `ece`, `adaptive_ece`, `mce`, `mean_confidence`, `brier`, `nll`."""
        found = as_floats(self.maps.compute()) | as_floats(self.calibration.compute()) | as_floats(self.probabilities.compute())
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
            scores = metrics.segmentation_scores(counts.sum(0))
            return torch.stack([scores[name] for name in self.statistics])

        return scores_of

    def image_scores(self) -> dict[str, Tensor]:
        """mIoU, aAcc and mAcc of every image on its own."""
        scores = metrics.segmentation_scores(self.image_rows())
        return {name: scores[name] for name in self.statistics}

    def extras(self) -> dict[str, Any]:
        """IoU and accuracy of each class, and the reliability diagram."""
        scores, diagram = self.maps.compute(), self.calibration.reliability()
        classes = {self.id2label[k]: {"IoU": float(scores["IoU"][k]), "Acc": float(scores["Acc"][k])} for k in self.id2label}
        return {"classes": classes, "reliability": {name: value.tolist() for name, value in diagram.items()}}


class LabelScorer(SegmentationScorer):
    """mIoU and accuracies of class ids without class scores, and their uncertainty, if there is one, against the wrong pixels."""

    def _sampled_labels(self, logits: Tensor, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return logits[:, 0]

    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return output.logits[part, 0].to(self.device)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        self.maps.update(prediction, truth)
        wrong = prediction != truth
        self._score_uncertainties(kinds, wrong, wrong, truth != self.ignore_index, indices)

    def scores(self) -> dict[str, float]:
        """`mIoU`, `aAcc`, `mAcc`."""
        return as_floats(self.maps.compute())

    def extras(self) -> dict[str, Any]:
        """IoU and accuracy of each class."""
        scores = self.maps.compute()
        return {
            "classes": {self.id2label[k]: {"IoU": float(scores["IoU"][k]), "Acc": float(scores["Acc"][k])} for k in self.id2label}
        }


def label_image(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class ids as an image whose pixel values are the ids: palette mode up to 256 classes, else 16-bit grey."""
    if labels.dtype != np.uint8:
        return Image.fromarray(labels.astype(np.uint16))
    table = np.zeros((256, 3), np.uint8)
    table[:] = IGNORE_COLOR
    table[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(table.tobytes())
    return image


class ClassCalibrator(Calibrator):
    """Calibrates class probabilities by a temperature, with ``method="isotonic"`` by what confidences came true after it, and sets
    of classes by a least probability.

    Sets are the least ambiguous ones (Sadinle, Lei & Wasserman 2019) that always hold the likeliest class: they do not fall below
    the coverage of the map itself.

    Args:
        id2label: The classes.
        ignore_index: True label of the pixels that do not count.
    """

    methods = ("temperature", "isotonic")

    def __init__(self, id2label: dict[int, str], ignore_index: int) -> None:
        self.id2label, self.ignore_index = id2label, ignore_index

    def stated(self, output: Any, row: int, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """See `Calibrator.stated`; logits."""
        logits = output.logits[row : row + 1].float()
        return resize_logits(logits, processed, size, log_probabilities=bool(output.log_probabilities))[0]

    def known(self, truth: Tensor) -> Tensor:
        """See `Calibrator.known`."""
        return truth != self.ignore_index

    def fit(self, pixels: DrawnPixels, levels: Sequence[float], groups: Tensor | None) -> Calibration:
        """See `Calibrator.fit`."""
        check_pixels(pixels)
        logits, labels = pixels.as_maps()
        classes = labels.unique().tolist()
        if len(classes) < 2:
            name = self.id2label.get(int(classes[0]), classes[0])
            raise ValueError(f"all labelled pixels are of one class, {name!r}; expected at least two to calibrate on")
        if bool((logits.argmax(1) == labels).all()):
            raise ValueError("no drawn pixel is wrong; expected images on which the model errs, or any confidence is right")
        found = Calibration(temperature=metrics.fit_temperature([logits], [labels], self.ignore_index, labels.numel()))
        p = self._probabilities(pixels, found)
        if self.method == "isotonic":
            confidence, likeliest = p.max(1)
            found = replace(found, confidences=metrics.fit_confidences(confidence, likeliest == pixels.truth))
            p = self._probabilities(pixels, found)
        of_truth = p.gather(1, pixels.truth[:, None])[:, 0]
        badness = torch.where(of_truth == p.amax(1), 0, 1 - of_truth)
        fitted = [(level, conformal_threshold(badness, level, groups)) for level in levels]
        reached = [(level, max(0.0, 1 - score)) for level, score in fitted if score <= 1]
        return replace(found, levels=tuple(level for level, _ in reached), thresholds=tuple(least for _, least in reached))

    def _probabilities(self, pixels: DrawnPixels, calibration: Calibration | None) -> Tensor:
        return (calibration or Calibration()).correct_classes(pixels.as_maps()[0]).double().softmax(1)[0, :, :, 0].T

    def scores(self, pixels: DrawnPixels, calibration: Calibration | None) -> dict[str, float]:
        """See `Calibrator.scores`; ``brier``, ``coverage_90``, ``coverage_95`` and the mean sizes of the sets.

        Without fitted sets those of `naive_sets` are scored.
        """
        p, truth = self._probabilities(pixels, calibration), pixels.truth
        confidence, labels = p.max(1)
        of_truth = p.gather(1, truth[:, None])[:, 0]
        found = {
            "error": float((labels != truth).double().mean()),
            "ece": confidence_error(confidence, labels == truth)[0],
            "nll": float(-of_truth.clamp(min=1e-12).log().mean()),
            "brier": float((p.square().sum(1) - 2 * of_truth + 1).mean()),
        }
        for level in SET_LEVELS:
            if calibration is None or not calibration.thresholds:
                members = naive_sets(p, level)
            elif level > max(calibration.levels):
                continue
            else:
                members = likely_classes(p, calibration.least_probability(level))
            found[f"coverage_{round(100 * level)}"] = float(members.gather(1, truth[:, None]).double().mean())
            found[f"size_{round(100 * level)}"] = float(members.sum(1).double().mean())
        return found | {"auroc": error_auroc(1 - confidence, labels != truth)}

    def reliability(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[list[float], list[float]]:
        """See `Calibrator.reliability`; accuracy by confidence."""
        confidence, labels = self._probabilities(pixels, calibration).max(1)
        return confidence_error(confidence, labels == pixels.truth)[1]


class SegmentationTask(ImageTask):
    """Semantic segmentation."""

    name = "segmentation"
    model_class = Noise2MapForSemanticSegmentation
    reads_cells = True
    sample_key = "labels"
    processor_argument = "segmentation_maps"
    stored_folder = "labels"
    has_classes = True
    binary_errors = True
    screen_scores = ("mIoU", "aAcc", "mAcc", "ece", "brier", "nll")
    compared_scores = card_scores = percent_scores = ("mIoU", "aAcc", "mAcc")
    pipeline_tag = "image-segmentation"

    def true_array(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Class ids ``(H, W)``."""
        return np.asarray(sample["labels"])

    def truth(self, sample: Mapping[str, Any]) -> Tensor:
        """Class ids ``(H, W)`` int64."""
        return torch.from_numpy(self.true_array(sample).astype(np.int64))

    def maps(self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Class ids ``(H, W)``."""
        return [labels.cpu() for labels in processor.post_process_semantic_segmentation(output, target_sizes=list(sizes))]

    def at_size(self, model: Any, prediction: Tensor, probabilities: bool, *sizes: tuple[int, int]) -> Tensor:
        """Class probabilities; logits are resized as logits, as in the published tests."""
        resized = resize_map(prediction, *sizes)
        return resized if probabilities else resized.softmax(1)

    def mean_output(self, mean: Tensor, **fields: Any) -> MapSegmenterOutput:
        """The logarithm of the mean probabilities."""
        return MapSegmenterOutput(logits=mean.clamp_min(torch.finfo(mean.dtype).tiny).log(), **fields)

    def blendable(self, prediction: Tensor, log_probabilities: bool) -> Tensor:
        """Class probabilities."""
        return prediction.float().exp() if log_probabilities else prediction.float().softmax(1)

    def blended(self, mean: Tensor) -> Tensor:
        """The logarithm of the mean probabilities."""
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny).log_()

    def arrays(
        self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]], before: Sequence[tuple[int, int]] = ()
    ) -> list[np.ndarray]:
        """Class ids ``(H, W)`` uint8, or uint16 for more than 256 classes; never all logits at full size."""
        kind = np.uint8 if output.logits.shape[1] <= 256 else np.uint16
        found = []
        for logits, size in zip(output.logits, sizes):
            scores = logits.exp() if output.log_probabilities else logits
            found.append(resized_argmax(scores, *before, size).cpu().numpy().astype(kind))
        return found

    def check_interval(self, model: Any, level: float) -> None:
        """See `ImageTask.check_interval`; only a calibration has sets of classes."""
        if model.calibration is None or not model.calibration.thresholds:
            raise ValueError("the model states no sets of classes: it is not calibrated; calibrate it first (noise2map calibrate)")
        model.calibration.least_probability(level)

    def interval(self, output: Any, row: int, level: float, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
        """Members of the sets of classes."""
        least, log_p = output.calibration.least_probability(level), bool(output.log_probabilities)
        strips = []
        for strip in resized_strips(output.logits[row].exp() if log_p else output.logits[row], *sizes):
            p = strip / strip.sum(0) if log_p else strip.softmax(0)
            strips.append(likely_classes(p, least, dim=0))
        return {"members": torch.cat(strips, 1).cpu().numpy()}

    def interval_images(self, prediction: Prediction, config: Any) -> dict[str, np.ndarray]:
        """``set_size``: how many classes come into question."""
        sizes = prediction.interval["members"].sum(0)
        return {"set_size": sizes.astype(np.uint8 if len(prediction.interval["members"]) < 256 else np.uint16)}

    def files(self, prediction: Prediction, name: str, config: Any) -> dict[str, tuple[str, bytes]]:
        """``labels``: a PNG whose pixel values are the ids."""
        assert prediction.palette is not None
        return {"labels": (f"labels/{name}.png", encode_image(label_image(prediction.map, prediction.palette)))}

    def summary(self, prediction: Prediction, config: Any) -> dict[str, Any]:
        """Shares of the classes, the largest first."""
        ids, counts = np.unique(prediction.map, return_counts=True)
        shares, names = counts / prediction.map.size, prediction.id2label
        order = np.argsort(-shares, kind="stable")
        return {"class_shares": {names.get(int(ids[i]), str(ids[i])): round(float(shares[i]), 6) for i in order}}

    def panel(self, prediction: Prediction, image: np.ndarray, heading: str, kind: str, truth: np.ndarray | None = None) -> Panel:
        """See `ImageTask.panel`; the classes in a legend."""
        assert prediction.palette is not None
        names, palette, unsure = prediction.id2label, prediction.palette, prediction.uncertainty
        return segmentation_panel(image, prediction.map, unsure, names, palette, truth=truth, heading=heading, kind=kind)

    def map_from_image(self, path: Path, record: Mapping[str, Any], depth_scale: float) -> Tensor:
        """Class ids ``(H, W)`` of a single-channel image."""
        return torch.from_numpy(open_class_map(path).astype(np.int64))

    def map_from_array(self, values: np.ndarray, path: Path) -> Tensor:
        """Class ids ``(H, W)``."""
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise ValueError(f"{path} holds {values.dtype} of shape {values.shape}; expected integer class ids (H, W)")
        return torch.from_numpy(values.astype(np.int64))

    def stored_output(self, maps: Tensor, **fields: Any) -> MapSegmenterOutput:
        """Class ids in place of logits, ``(B, 1, H, W)``."""
        return MapSegmenterOutput(logits=maps[:, None], **fields)

    def paint(self, values: Tensor, reference: Tensor, palette: np.ndarray) -> np.ndarray:
        """See `ImageTask.paint`."""
        return colorize_labels(values.numpy(), palette)

    def training_metric(self, config: Any) -> "metrics.SegmentationScores":
        """See `Task.training_metric`."""
        return metrics.SegmentationScores(config.num_labels, ignore_index=config.semantic_loss_ignore_index, keep_per_image=False)

    def calibrator(self, model: Any) -> ClassCalibrator:
        """See `Task.calibrator`."""
        names = {int(index): str(name) for index, name in model.config.id2label.items()}
        return ClassCalibrator(names, model.config.semantic_loss_ignore_index)

    def scorer(self, model: Any, options: ScoringOptions) -> Scorer:
        """See `Task.scorer`."""
        config = model.config
        names = {int(index): str(name) for index, name in config.id2label.items()}
        ignore_index, temperature = config.semantic_loss_ignore_index, float(config.temperature)
        if options.without_probabilities:
            return LabelScorer(names, ignore_index, scoring_device(model)).with_options(options)
        scorer = SegmentationScorer(names, ignore_index, scoring_device(model), options.temperature_images, temperature)
        return scorer.with_options(options)
