"""Maps of surface normals of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map import metrics
from noise2map.codecs.normals import unit_vectors
from noise2map.data.maps.normals import encode_normals, open_normals_map
from noise2map.metrics.conformal import fit_scale_factor
from noise2map.models.distributions.angular import AngularDistribution, angle_between
from noise2map.models.distributions.calibration import Calibration
from noise2map.models.normals import (
    MapNormalsOutput,
    Noise2MapForNormalEstimation,
    calibrated_spread,
    scale_as_uncertainty,
    scale_degrees,
)
from noise2map.models.resizing import resize_map
from noise2map.report.canvas import ColorBar
from noise2map.report.palettes import UNCERTAINTY_MAP, colorize, colorize_normals
from noise2map.report.panels import Cell, Panel, uncertainty_cell
from noise2map.runs.files import encode_image
from noise2map.tasks.base import ImageTask
from noise2map.tasks.calibrating import DistributionCalibrator
from noise2map.tasks.prediction import Prediction
from noise2map.tasks.scoring import ImageScorer, Scorer, ScoringOptions, as_floats, scoring_device, sort_rows

_MOSTLY = 0.7  # of a vector, where one direction outweighs the two others
_SHOWN_DEGREES = 60.0
_CAMERA_AXES = np.array([1, -1, -1], np.float32)  # x right, y down, z forward, as cameras and point clouds have them


class NormalsScorer(ImageScorer):
    """Angular errors, and every kind of uncertainty against them.

    Args:
        device: Where scores are computed.
    """

    error_kind = "continuous"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.statistics = metrics.NORMALS_SCORES
        self.maps = metrics.NormalsScores().to(device)
        self.pooled = metrics.NormalsScores(average="pixel", keep_per_image=False).to(device)

    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return unit_vectors(resize_map(output.prediction[part].float(), processed, size)).to(self.device)

    def masked(self, truth: Tensor, region: Tensor) -> Tensor:
        """See `Scorer.masked`."""
        return torch.where(region, truth, 0)

    def _update_distribution(
        self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        if output.spread is None:
            return
        spread = resize_map(output.spread[part, None].float(), processed, size).to(self.device)
        directions = self._prediction(output, part, processed, size)
        found = AngularDistribution.from_prediction(torch.cat([directions, spread], 1))
        within = found.cumulative(angle_between(found.directions, truth))
        stated = tuple(output.stated_level(level) for level in metrics.samples.scales.LEVELS)
        self._add_sums(
            "scale_",
            metrics.samples.ConeScores,
            indices,
            found.negative_log_likelihood(truth),
            within,
            metrics.normals_valid(truth),
            stated,
        )

    def _update_samples(
        self, samples: Tensor, processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        count = samples.shape[1]
        whole = torch.stack([unit_vectors(resize_map(one.float(), processed, size)) for one in samples.unbind(1)], 1)
        self._add_sums("", lambda: metrics.samples.NormalsSampleScores(count), indices, whole.to(self.device), truth)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        self.maps.update(prediction, truth)
        self.pooled.update(prediction, truth)
        error = metrics.angular_error(prediction, truth).float()
        self._score_uncertainties(kinds, error, error >= metrics.ANGLE_THRESHOLDS[0], metrics.normals_valid(truth), indices)

    def scores(self) -> dict[str, float]:
        """The five scores, averaged over images."""
        return as_floats(self.maps.compute())

    def image_rows(self) -> Tensor:
        """Scores `(N, 5)`."""
        return sort_rows(self.maps.per_image().cpu(), self.order)

    def image_scores(self) -> dict[str, Tensor]:
        """The five scores of every image."""
        return dict(zip(metrics.NORMALS_SCORES, self.image_rows().unbind(1)))

    def extras(self) -> dict[str, Any]:
        """The same scores pooled over pixels, which some papers report."""
        return {"pooled": as_floats(self.pooled.compute())}


class NormalsCalibrator(DistributionCalibrator):
    """Calibrates the spread of directions, and cones; without a predicted spread one that is the same everywhere."""

    def stated(self, output: Any, row: int, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """See `Calibrator.stated`; directions, then the spread."""
        directions = unit_vectors(resize_map(output.prediction[row : row + 1].float(), processed, size))[0]
        if output.spread is None:
            return directions
        return torch.cat([directions, resize_map(output.spread[row : row + 1, None].float(), processed, size)[0]])

    def known(self, truth: Tensor) -> Tensor:
        """See `Calibrator.known`."""
        return metrics.normals_valid(truth[None])[0]

    def has_scale(self, stated: Tensor) -> bool:
        """See `DistributionCalibrator.has_scale`."""
        return stated.shape[1] > 3

    def calibrated(self, maps: Tensor, calibration: Calibration) -> Tensor:
        """See `DistributionCalibrator.calibrated`."""
        return calibrated_spread(maps, calibration)

    def central(self, maps: Tensor, truth: Tensor) -> Tensor:
        """See `DistributionCalibrator.central`."""
        found = AngularDistribution.from_prediction(maps.double())
        return found.cumulative(angle_between(found.directions, truth.double())).flatten()

    def nll(self, maps: Tensor, truth: Tensor) -> Tensor:
        """See `DistributionCalibrator.nll`."""
        return AngularDistribution.from_prediction(maps).negative_log_likelihood(truth).flatten()

    def constant_scale(self, maps: Tensor, truth: Tensor) -> float:
        """See `DistributionCalibrator.constant_scale`."""

        def nll(spread: float) -> float:
            return float(self.nll(calibrated_spread(maps, Calibration(scale=spread)), truth).double().mean())

        return fit_scale_factor(nll, 1e-3)

    def errors(self, maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """See `DistributionCalibrator.errors`; angles in degrees, wrong from 11.25 on."""
        error = metrics.angular_error(maps[:, :3], truth).float().flatten()
        return error, error >= metrics.ANGLE_THRESHOLDS[0]

    def uncertainty(self, maps: Tensor) -> Tensor:
        """See `DistributionCalibrator.uncertainty`."""
        return scale_as_uncertainty(scale_degrees(maps[:, 3])).flatten()

    def width(self, maps: Tensor, level: float) -> Tensor:
        """See `DistributionCalibrator.width`; the cone's angle in degrees."""
        return AngularDistribution.from_prediction(maps.double()).cone(level).flatten()


class NormalsTask(ImageTask):
    """Surface normals: unit vectors, x to the right, y up, z towards the viewer."""

    name = "normals"
    model_class = Noise2MapForNormalEstimation
    sample_key = "normals"
    stored_folder = "normals"
    screen_scores = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
    compared_scores = card_scores = ("mean_angle", "median_angle", "within_11.25", "within_30")
    percent_scores = ("within_11.25", "within_22.5", "within_30")
    pipeline_tag = "image-to-image"

    def true_array(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Unit vectors ``(H, W, 3)`` float32, zero where unknown."""
        return np.asarray(sample["normals"], np.float32)

    def truth(self, sample: Mapping[str, Any]) -> Tensor:
        """Unit vectors ``(3, H, W)`` float32, zero where unknown."""
        return torch.from_numpy(np.ascontiguousarray(self.true_array(sample).transpose(2, 0, 1)))

    def maps(self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Unit vectors ``(3, H, W)``."""
        vectors = output.prediction.float()
        return [unit_vectors(resize_map(one[None], size))[0].cpu() for one, size in zip(vectors, sizes)]

    def at_size(self, model: Any, prediction: Tensor, probabilities: bool, *sizes: tuple[int, int]) -> Tensor:
        """Unit vectors."""
        return unit_vectors(resize_map(prediction, *sizes))

    def mirror(self, values: Tensor) -> Tensor:
        """Normals of the mirrored map: x changes its sign."""
        return values.flip(-1) * values.new_tensor([-1, 1, 1]).view(3, 1, 1)

    def mean_output(self, mean: Tensor, **fields: Any) -> MapNormalsOutput:
        """The mean direction."""
        return MapNormalsOutput(predicted_normals=unit_vectors(mean), **fields)

    def blended(self, mean: Tensor) -> Tensor:
        """Mean directions; spreads as they are."""
        mean[:, :3] = unit_vectors(mean[:, :3])
        return mean

    def arrays(
        self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]], before: Sequence[tuple[int, int]] = ()
    ) -> list[np.ndarray]:
        """Unit vectors ``(H, W, 3)``."""
        return [np.ascontiguousarray(one.numpy().transpose(1, 2, 0)) for one in self.maps(output, processor, sizes)]

    def computed(self, output: Any) -> dict[str, Tensor]:
        """Unit vectors ``(B, h, w, 3)``."""
        scale = {} if output.predicted_scale is None else {"scale_degrees": output.predicted_scale}
        return {"normals": output.prediction.movedim(1, -1), **scale}

    def check_interval(self, model: Any, level: float) -> None:
        """See `ImageTask.check_interval`; a predicted spread does, or a calibration."""
        calibration = model.calibration
        if model.default_uncertainty != "scale" and (calibration is None or calibration.scale is None):
            raise ValueError(
                "the model states no cone of directions: it predicts no spread; calibrate it first (noise2map calibrate)"
            )

    def interval(self, output: Any, row: int, level: float, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
        """Angle of the cone about the direction, degrees."""
        return {"cone_degrees": resize_map(output.cone(level)[row][None, None].float(), *sizes)[0, 0].cpu().numpy()}

    def interval_images(self, prediction: Prediction, config: Any) -> dict[str, np.ndarray]:
        """``cone``, in hundredths of a degree."""
        return {"cone": np.rint(100 * prediction.interval["cone_degrees"]).astype(np.uint16)}

    def files(self, prediction: Prediction, name: str, config: Any) -> dict[str, tuple[str, bytes]]:
        """``normals``: an RGB PNG, see :func:`noise2map.data.maps.normals.encode_normals`."""
        return {"normals": (f"normals/{name}.png", encode_image(Image.fromarray(encode_normals(prediction.map))))}

    def summary(self, prediction: Prediction, config: Any) -> dict[str, Any]:
        """The mean direction, and the shares that face up, down, and neither."""
        mean, up = prediction.map.reshape(-1, 3).mean(0), prediction.map[..., 1]
        shares = {"up": (up > _MOSTLY).mean(), "down": (up < -_MOSTLY).mean(), "upright": (np.abs(up) <= _MOSTLY).mean()}
        found = {name: round(float(share), 6) for name, share in shares.items()}
        return {"mean_normal": [round(float(value), 4) for value in mean], "facing_shares": found}

    def panel(self, prediction: Prediction, image: np.ndarray, heading: str, kind: str, truth: np.ndarray | None = None) -> Panel:
        """See `ImageTask.panel`; x red, y green, z blue."""
        cells = [Cell("image", image), Cell("normals", colorize_normals(prediction.map * _CAMERA_AXES))]
        if prediction.uncertainty is not None:
            cells.append(uncertainty_cell(prediction.uncertainty, kind))
        if truth is not None:
            vectors = [torch.from_numpy(np.ascontiguousarray(one)).movedim(-1, 0)[None] for one in (prediction.map, truth)]
            known = metrics.normals_valid(vectors[1])[0].numpy()
            error = np.where(known, metrics.angular_error(*vectors)[0].numpy(), np.nan)
            note = f"mean {error[known].mean():.1f} degrees" if known.any() else ""
            bar = ColorBar(0.0, _SHOWN_DEGREES, UNCERTAINTY_MAP, open_end=True)
            cells.append(Cell("truth", colorize_normals(truth * _CAMERA_AXES)))
            cells.append(Cell("angular error", colorize(error, 0.0, _SHOWN_DEGREES), bar, note))
        return Panel(cells, heading=heading)

    def map_from_image(self, path: Path, record: Mapping[str, Any], depth_scale: float) -> Tensor:
        """Unit vectors ``(3, H, W)`` of a color image."""
        return torch.from_numpy(np.ascontiguousarray(open_normals_map(path).transpose(2, 0, 1)))

    def map_from_array(self, values: np.ndarray, path: Path) -> Tensor:
        """Vectors ``(H, W, 3)`` as unit vectors ``(3, H, W)``."""
        if values.ndim != 3 or values.shape[-1] != 3 or values.dtype.kind != "f":
            raise ValueError(f"{path} holds {values.dtype} of shape {values.shape}; expected vectors (H, W, 3) in floating point")
        return unit_vectors(torch.from_numpy(np.ascontiguousarray(values.astype(np.float32).transpose(2, 0, 1))), 0)

    def stored_output(self, maps: Tensor, **fields: Any) -> MapNormalsOutput:
        """Unit vectors."""
        return MapNormalsOutput(predicted_normals=maps, **fields)

    def paint(self, values: Tensor, reference: Tensor, palette: np.ndarray) -> np.ndarray:
        """See `ImageTask.paint`: x red, y green, z blue."""
        return colorize_normals(values.numpy().transpose(1, 2, 0) * _CAMERA_AXES)

    def training_metric(self, config: Any) -> "metrics.NormalsScores":
        """See `Task.training_metric`."""
        return metrics.NormalsScores(keep_per_image=False)

    def calibrator(self, model: Any) -> NormalsCalibrator:
        """See `Task.calibrator`."""
        return NormalsCalibrator()

    def scorer(self, model: Any, options: ScoringOptions) -> Scorer:
        """See `Task.scorer`."""
        return NormalsScorer(scoring_device(model)).with_options(options)
