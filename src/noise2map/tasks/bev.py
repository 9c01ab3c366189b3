"""Bird's-eye-view maps of layers, from several sensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from noise2map import metrics
from noise2map.data.nuscenes import NuScenesDataset
from noise2map.data.opening import open_dataset
from noise2map.models.bev import Noise2MapBevConfig, Noise2MapBevProcessor, Noise2MapForBevSegmentation
from noise2map.models.distributions.calibration import Calibration
from noise2map.tasks.base import Task
from noise2map.tasks.calibrating import Calibrator, DrawnPixels, check_pixels, confidence_error, error_auroc
from noise2map.tasks.scoring import Scorer, ScoringOptions, scoring_device, sort_rows

UNKNOWN = 255

# Calibrated probabilities of thin layers seldom reach the published thresholds, however well they rank the cells.
WIDE_THRESHOLDS = (0.02, *(round(0.05 * k, 2) for k in range(1, 20)))  # the published ones among them

FITTED = ("mIoU_fitted", "mIoU_fitted_gain")
"""Scores at the processor's thresholds: mean IoU, and how much above that at 0.5 it is."""

_LEAST = 1e-7


class BevScorer(Scorer):
    """IoU at the best published threshold, at 0.5 and at the best of all, calibration, every uncertainty against the wrong cells.

    A cell counts once for each layer: calibration and uncertainty are those of K yes-or-no questions.

    Args:
        id2label: The layers.
        device: Where scores are computed.
        thresholds: Probability from which each layer is shown, to be scored at, too; None for none.

    Raises:
        ValueError: If there is another number of thresholds than of layers.
    """

    statistics: tuple[str, ...] = ("mIoU_max", "mIoU_50", "mIoU_wide")
    error_kind = "binary"

    def __init__(self, id2label: Mapping[int, str], device: torch.device, thresholds: Sequence[float] | None = None) -> None:
        super().__init__(device)
        self.id2label = dict(id2label)
        if thresholds is not None and len(thresholds) != len(self.id2label):
            raise ValueError(
                f"layer_thresholds has {len(thresholds)} numbers; expected one for each of {len(self.id2label)} layers"
            )
        self.thresholds = thresholds
        if thresholds is not None:
            self.statistics = (*self.statistics, *FITTED)
        self.counts: list[Tensor] = []
        self.calibration = metrics.ExpectedCalibrationError().to(device)
        self.probability_sums = torch.zeros(3, dtype=torch.float64, device=device)  # cells, Brier scores, negative log likelihoods

    def masked(self, truth: Tensor, region: Tensor) -> Tensor:
        """See `Scorer.masked`."""
        return torch.where(region, truth, UNKNOWN)

    def update(self, output: Any, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B samples.
            processed: Not used: maps have a grid of their own.
            indices: Place of each sample in the dataset.
            truths: True layers `(K, X, Y)` of each sample, 0, 1 or 255.

        Raises:
            ValueError: If probabilities are not finite, or shapes differ.
        """
        probabilities = output.probabilities.float().to(self.device)
        if not bool(torch.isfinite(probabilities).all()):
            raise ValueError("probabilities hold NaN or infinite values")
        truth = torch.stack(list(truths)).to(self.device)
        self.order += list(indices)
        self.steps += output.num_steps.tolist()
        cuts = (*WIDE_THRESHOLDS, 0.5 if self.thresholds is None else tuple(self.thresholds))
        self.counts.append(metrics.bev_counts(probabilities, truth, cuts, UNKNOWN).cpu())
        known, present = truth != UNKNOWN, truth == 1
        wrong = (probabilities >= 0.5) != present
        confidence = torch.maximum(probabilities, 1 - probabilities)
        self.calibration.update(_flat(confidence), _flat(~wrong), _flat(known))
        of_truth = torch.where(present, probabilities, 1 - probabilities).double()[known]
        brier, likelihood = (1 - of_truth).square().sum(), -of_truth.clamp_min(_LEAST).log().sum()
        self.probability_sums += torch.stack([known.sum().double(), brier, likelihood])
        kinds = output.uncertainties or {}
        maps = {name: _flat(value.float().clamp(0, 1).to(self.device)) for name, value in kinds.items()}
        self._score_uncertainties(maps, _flat(wrong), _flat(wrong), _flat(known), list(indices))
        if self.sample_scores:
            # logits: present above a probability of 0.5
            present = (output.probabilities >= 0.5)[:, None] if output.samples is None else output.samples > 0
            drawn = present.float().to(self.device)
            count = drawn.shape[1]
            self._add_sums(
                "", lambda: metrics.samples.LayerSampleScores(len(self.id2label), count, UNKNOWN), list(indices), drawn, truth
            )

    def scores(self) -> dict[str, float]:
        """`statistics`, `ece`, `adaptive_ece`, `mce`, `mean_confidence`, `cell_accuracy`, `brier`, `nll`."""
        totals = self._totals()
        found = {name: float(totals[name]) for name in self.statistics}
        found |= {name: float(value) for name, value in self.calibration.compute().items()}
        found["cell_accuracy"] = found.pop("accuracy")
        cells, brier, likelihood = self.probability_sums.tolist()
        return found | {"brier": brier / max(cells, 1), "nll": likelihood / max(cells, 1)}

    def _totals(self) -> dict[str, Tensor]:
        return _scores_of(torch.cat(self.counts).sum(0))

    def image_rows(self) -> Tensor:
        """Counts `(N, 3, thresholds, K)` at `WIDE_THRESHOLDS` and at the processor's, or at 0.5 where it has none."""
        return sort_rows(torch.cat(self.counts), self.order)

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """The scores of the samples together."""

        def scores_of(counts: Tensor) -> Tensor:
            scores = _scores_of(counts.sum(0))
            return torch.stack([scores[name] for name in self.statistics])

        return scores_of

    def image_scores(self) -> dict[str, Tensor]:
        """The scores of every sample on its own; a layer that is neither there nor predicted counts as 0."""
        scores = _scores_of(self.image_rows())
        return {name: scores[name] for name in self.statistics}

    def extras(self) -> dict[str, Any]:
        """IoU of each layer: the best of the published thresholds and of all, at which, at 0.5, and at the processor's own."""
        totals, diagram = self._totals(), self.calibration.reliability()
        layers = {}
        for index, name in self.id2label.items():
            column, wide = totals["IoU"][:, index], totals["IoU_wide"][:, index]
            best = {"IoU_max": float(column.max()), "threshold": metrics.BEV_THRESHOLDS[int(column.argmax())]}
            best |= {"IoU_wide": float(wide.max()), "wide_threshold": WIDE_THRESHOLDS[int(wide.argmax())]}
            layers[name] = {**best, "IoU_50": float(totals["IoU_50"][index])}
            if self.thresholds is not None:
                layers[name] |= {"IoU_fitted": float(totals["IoU_fitted"][index]), "fitted_threshold": self.thresholds[index]}
        return {"layers": layers, "reliability": {name: value.tolist() for name, value in diagram.items()}}


def _scores_of(counts: Tensor) -> dict[str, Tensor]:
    """Scores of counts at `WIDE_THRESHOLDS` and, last, at fitted ones.

    Returns:
        `bev_scores` of the published ones, those of all under names with ``wide``, of the fitted ones with ``fitted``.
    """
    wide = metrics.bev_scores(counts[..., :-1, :], WIDE_THRESHOLDS)
    published = metrics.bev_scores(counts[..., [WIDE_THRESHOLDS.index(one) for one in metrics.BEV_THRESHOLDS], :])
    found = published | {"mIoU_wide": wide["mIoU_max"], "IoU_wide": wide["IoU"]}
    fitted = metrics.bev_scores(counts[..., -1:, :], (0.5,))
    gain = fitted["mIoU_50"] - published["mIoU_50"]
    return found | {"mIoU_fitted": fitted["mIoU_50"], "mIoU_fitted_gain": gain, "IoU_fitted": fitted["IoU_50"]}


def _flat(maps: Tensor) -> Tensor:
    """`(B, K, X, Y)` as maps `(B, K X, Y)`."""
    return maps.flatten(1, 2)


def open_bev_dataset(name: str, root: str | Path | None, split: str, model: Any, processor: Any, cells: str = "visible") -> Any:
    """A split of a dataset as a model needs it: its sensors, its sweeps, its grid of the map; ``cells`` as of `bev_data_set`.

    Raises:
        OSError: If files are missing.
        ValueError: If the name is unknown, the root is missing, or the split holds nothing.
    """
    return bev_data_set(name, root, split, processor.sweeps, model.config, cells)


def bev_data_set(
    name: str,
    root: str | Path | None,
    split: str,
    sweeps: int,
    config: Noise2MapBevConfig,
    cells: str = "visible",
    training: bool = False,
) -> NuScenesDataset:
    """A split of a dataset, its map on the grid of the model.

    Args:
        name: the dataset.
        root: its folder.
        split: its split.
        sweeps: most LiDAR readings before each key frame.
        config: the model's configuration.
        cells: ``"all"`` also labels what cannot be seen, for datasets that know the difference (freedoom-surround).
        training: samples hold the LiDAR points, too, that teach cameras depth (``config.depth_loss_weight``).

    Raises:
        OSError: if files are missing.
        ValueError: if the split has no sample, or the map's grid is not centred on the car.
    """
    options: dict[str, Any] = {} if cells == "visible" else {"cells": cells}
    sensors = config.training_sensors if training else tuple(config.sensors)
    return open_dataset(name, root, split, "bev", sensors=sensors, sweeps=sweeps, **map_extent(config), **options)


def map_extent(config: Noise2MapBevConfig) -> dict[str, Any]:
    """Size in metres and in cells of a model's map.

    Raises:
        ValueError: if the map is not centred on the car, where datasets draw it.
    """
    grid = config.map_grid
    for name, axis in zip(("map_x_bounds", "map_y_bounds"), grid):
        if abs(axis.lower + axis.upper) > 1e-6:
            raise ValueError(f"{name} is {list(axis)!r}; expected a range around 0, where the map is drawn")
    return {"size_m": tuple(axis.upper - axis.lower for axis in grid), "canvas": tuple(axis.count for axis in grid)}


class LayerCalibrator(Calibrator):
    """Calibrates the probability of each layer by a temperature of its own; of a layer that is nowhere, or everywhere, by none.

    The thresholds from which layers are shown are fitted to what comes out; ``thresholds`` fits them alone.

    Args:
        own: The model's calibration, which ``thresholds`` leaves as it is.
    """

    methods = ("temperature", "thresholds")

    def __init__(self, own: Calibration | None = None) -> None:
        self.own = own

    def stated(self, output: Any, row: int, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """See `Calibrator.stated`; log-odds."""
        return torch.logit(output.probabilities[row].float(), eps=_LEAST)

    def known(self, truth: Tensor) -> Tensor:
        """See `Calibrator.known`; where any layer is."""
        return (truth != UNKNOWN).any(0)

    def fit(self, pixels: DrawnPixels, levels: Sequence[float], groups: Tensor | None) -> Calibration:
        """See `Calibrator.fit`; there are no sets, a layer is there or not."""
        check_pixels(pixels)
        if self.method == "thresholds":
            return self.own or Calibration()
        return Calibration(temperature=tuple(self._temperature(*one) for one in zip(pixels.stated.T, pixels.truth.T)))

    @staticmethod
    def _temperature(odds: Tensor, truth: Tensor) -> float:
        known = truth != UNKNOWN
        odds, present = odds[known], truth[known] == 1
        if not len(odds) or bool((present == present[0]).all()):
            return 1.0
        logits = torch.stack([torch.zeros_like(odds), odds])[None, :, :, None]  # softmax of (0, z) is the sigmoid of z
        return metrics.fit_temperature([logits], [present.long()[None, :, None]], UNKNOWN, len(odds))

    def _maps(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[Tensor, Tensor]:
        """Probabilities and truths as maps of one row."""
        stated, truth = pixels.as_maps()
        return (calibration or Calibration()).cool(stated).sigmoid(), truth

    def thresholds(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[float, ...]:
        """See `Calibrator.thresholds`; those of `best_layer_thresholds`."""
        return metrics.best_layer_thresholds(*self._maps(pixels, calibration), ignore_index=UNKNOWN)

    def shown_scores(
        self, pixels: DrawnPixels, calibration: Calibration | None, thresholds: Sequence[float] | None
    ) -> dict[str, float]:
        """See `Calibrator.shown_scores`; ``miou``, at 0.5 without thresholds."""
        cuts = [0.5 if thresholds is None else tuple(thresholds)]
        counts = metrics.bev_counts(*self._maps(pixels, calibration), cuts, UNKNOWN).sum(0)
        return {"miou": float(metrics.bev_scores(counts, (0.5,))["mIoU_50"])}

    def _confidence(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of the truth, confidence, and whether it is right, of all known cells and layers."""
        odds = (calibration or Calibration()).cool(pixels.as_maps()[0]).double()[0, :, :, 0].T
        p, known, present = odds.sigmoid(), pixels.truth != UNKNOWN, pixels.truth == 1
        of_truth = torch.where(present, p, 1 - p)[known]
        return of_truth, torch.maximum(p, 1 - p)[known], ((p >= 0.5) == present)[known]

    def scores(self, pixels: DrawnPixels, calibration: Calibration | None) -> dict[str, float]:
        """See `Calibrator.scores`; a cell counts once for each layer."""
        of_truth, confidence, right = self._confidence(pixels, calibration)
        return {
            "error": float((~right).double().mean()),
            "ece": confidence_error(confidence, right)[0],
            "nll": float(-of_truth.clamp(min=_LEAST).log().mean()),
            "brier": float((1 - of_truth).square().mean()),
            "auroc": error_auroc(2 * (1 - confidence), ~right),
        }

    def reliability(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[list[float], list[float]]:
        """See `Calibrator.reliability`; share of right cells by confidence."""
        _, confidence, right = self._confidence(pixels, calibration)
        return confidence_error(confidence, right)[1]

    def baselines(self, pixels: DrawnPixels, fitted: Calibration, groups: Tensor | None) -> dict[str, Calibration]:
        """See `Calibrator.baselines`; one temperature for all layers."""
        if self.method == "thresholds":
            return {}
        return {"one temperature": Calibration(temperature=self._temperature(pixels.stated.flatten(), pixels.truth.flatten()))}


class BevTask(Task):
    """Bird's-eye-view map segmentation: layers that may overlap, on a grid of the model's own."""

    name = "bev"
    model_class = Noise2MapForBevSegmentation
    processor_class = Noise2MapBevProcessor
    sample_key = "labels"
    has_classes = True
    of_images = False
    binary_errors = True
    screen_scores = ("mIoU_max", "mIoU_50", "ece", "brier", "nll")
    card_scores = ("mIoU_50", "mIoU_max")
    compared_scores = percent_scores = (*card_scores, "mIoU_wide")
    pipeline_tag = "image-segmentation"

    def truth(self, sample: Mapping[str, Any]) -> Tensor:
        """Layers ``(K, X, Y)``: 0, 1, or 255 where nobody knows."""
        return torch.as_tensor(sample["labels"])

    def batch(self, processor: Any, samples: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Model inputs of the samples; the processor resizes as its fields say."""
        for sample in samples:
            self.check_sample(sample)
        return dict(processor(samples))

    def encode(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """See `Task.encode`."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "samples", "ids", "visibility")}
        return model.encode_sensors(**send_to_device(inputs, model.device))

    def training_metric(self, config: Any) -> "metrics.BevScores":
        """See `Task.training_metric`."""
        return metrics.BevScores(config.num_labels)

    def update_metric(self, metric: Any, output: Any, batch: Mapping[str, Any], processor: Any) -> None:
        """See `Task.update_metric`: the map has a grid of its own."""
        metric.update(output.probabilities.float().cpu(), batch["labels"].cpu())

    def calibrator(self, model: Any) -> LayerCalibrator:
        """See `Task.calibrator`."""
        return LayerCalibrator(None if model is None else Calibration.read(model.config.calibration))

    def scorer(self, model: Any, options: ScoringOptions) -> Scorer:
        """See `Task.scorer`."""
        return BevScorer(model.config.id2label, scoring_device(model), options.layer_thresholds).with_options(options)

    def open_dataset(self, name: str, root: Any, split: str, model: Any, processor: Any, depth_scale: float = 0.001) -> Any:
        """See `Task.open_dataset`: the model's sensors and sweeps, and its grid of the map."""
        return open_bev_dataset(name, root, split, model, processor)
