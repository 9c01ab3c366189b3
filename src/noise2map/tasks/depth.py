"""Depth maps of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map import metrics
from noise2map.data.images import open_depth_map
from noise2map.models import MapDepthOutput, Noise2MapForDepthEstimation
from noise2map.models.depth import calibrated_scale, scale_as_uncertainty, with_scale
from noise2map.models.distributions.calibration import Calibration
from noise2map.models.distributions.laplace import LogLaplace
from noise2map.models.resizing import resize_map
from noise2map.report.palettes import colorize_depth, depth_range
from noise2map.report.panels import Panel, depth_panel
from noise2map.runs.files import encode_image
from noise2map.runs.strips import by_strips
from noise2map.tasks.base import ImageTask
from noise2map.tasks.calibrating import DistributionCalibrator
from noise2map.tasks.prediction import Prediction
from noise2map.tasks.scoring import ImageScorer, Scorer, ScoringOptions, as_floats, scoring_device, sort_rows

# Units of a depth PNG per metre: millimetres where 16 bits reach, else 1/256 m (as in KITTI), else centimetres.
_DEPTH_SCALES = (1000, 256, 100)
_FULL_16_BITS = 65535


def depth_png_scale(max_depth_m: float) -> int:
    """Units per metre of a 16-bit depth PNG for depths up to ``max_depth_m``."""
    return next((scale for scale in _DEPTH_SCALES if max_depth_m * scale <= _FULL_16_BITS), _DEPTH_SCALES[-1])


def _depth_units(depth_m: np.ndarray, config: Any) -> np.ndarray:
    """Metres as what a 16-bit image holds, any shape."""
    scale = depth_png_scale(config.max_depth)
    return by_strips(lambda part: np.rint(part.astype(np.float64) * scale).clip(0, _FULL_16_BITS).astype(np.uint16), depth_m)


class DepthScorer(ImageScorer):
    """The nine depth scores, and every kind of uncertainty against the absolute relative error.

    Args:
        min_depth: Truth and prediction are scored above this, metres.
        max_depth: And below this.
        model_range: The model's own range, to which its output is clamped before it is resized, metres.
        device: Where scores are computed.
    """

    error_kind = "continuous"

    def __init__(self, min_depth: float, max_depth: float, model_range: tuple[float, float], device: torch.device) -> None:
        super().__init__(device)
        self.statistics = metrics.DEPTH_SCORES
        self.range, self.model_range = (min_depth, max_depth), model_range
        self.maps = metrics.DepthScores(min_depth, max_depth).to(device)
        self.pooled = metrics.DepthScores(min_depth, max_depth, average="pixel", keep_per_image=False).to(device)

    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        depth_m = output.predicted_depth[part, None].float().clamp(*self.model_range)
        return resize_map(depth_m, processed, size)[:, 0].to(self.device)

    def masked(self, truth: Tensor, region: Tensor) -> Tensor:
        """See `Scorer.masked`."""
        return torch.where(region, truth, 0)

    def _update_distribution(
        self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        if output.predicted_scale is None:
            return
        channels = with_scale(output)[part].float()
        depth_m = channels[:, :1].clamp(*self.model_range)
        whole = resize_map(torch.cat([depth_m, channels[:, 1:]], 1), processed, size).to(self.device)
        found = LogLaplace.from_prediction(whole)
        valid = metrics.depth_valid(truth, *self.range)
        log_truth = torch.where(valid, truth, 1).log()
        stated = tuple(output.stated_level(level) for level in metrics.samples.scales.LEVELS)
        self._add_sums(
            "scale_",
            metrics.samples.ScaleScores,
            indices,
            log_truth,
            found.weights,
            found.medians_m.log(),
            found.scales,
            valid,
            stated,
        )

    def _update_samples(
        self, samples: Tensor, processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        count = samples.shape[1]
        depth_m = samples[:, :, 0].float().clamp(*self.model_range)
        whole = resize_map(depth_m, processed, size).to(self.device)
        self._add_sums("", lambda: metrics.samples.DepthSampleScores(count, *self.range), indices, whole, truth)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        self.maps.update(prediction, truth)
        self.pooled.update(prediction, truth)
        valid = metrics.depth_valid(truth, *self.range)
        prediction, truth = prediction.clamp(*self.range), torch.where(valid, truth, 1)
        error, wrong = metrics.absolute_relative_error(prediction, truth), metrics.depth_is_wrong(prediction, truth)
        self._score_uncertainties(kinds, error, wrong, valid, indices)

    def scores(self) -> dict[str, float]:
        """The nine scores, averaged over images."""
        return as_floats(self.maps.compute())

    def image_rows(self) -> Tensor:
        """Scores `(N, 9)`."""
        return sort_rows(self.maps.per_image().cpu(), self.order)

    def image_scores(self) -> dict[str, Tensor]:
        """The nine scores of every image."""
        return dict(zip(metrics.DEPTH_SCORES, self.image_rows().unbind(1)))

    def extras(self) -> dict[str, Any]:
        """The same scores pooled over pixels, which some papers report; of samples the histogram of the truth's ranks."""
        found: dict[str, Any] = {"pooled": as_floats(self.pooled.compute())}
        samples = self.sums.get("")
        if isinstance(samples, metrics.samples.DepthSampleScores) and samples.num_samples > 1:
            found["rank_histogram"] = samples.ranks().tolist()
        return found


class DepthCalibrator(DistributionCalibrator):
    """Calibrates the scale of log depth, and intervals of depth; without a predicted scale one that is the same everywhere.

    Args:
        model_range: The model's range, to which depth is clamped, and in which truths count, metres.
    """

    def __init__(self, model_range: tuple[float, float]) -> None:
        self.range = model_range

    def stated(self, output: Any, row: int, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """See `Calibrator.stated`; as `with_scale` lays it out."""
        channels = with_scale(output)[row : row + 1].float()
        return resize_map(torch.cat([channels[:, :1].clamp(*self.range), channels[:, 1:]], 1), processed, size)[0]

    def known(self, truth: Tensor) -> Tensor:
        """See `Calibrator.known`."""
        return metrics.depth_valid(truth, *self.range)

    def has_scale(self, stated: Tensor) -> bool:
        """See `DistributionCalibrator.has_scale`."""
        return stated.shape[1] > 1

    def calibrated(self, maps: Tensor, calibration: Calibration) -> Tensor:
        """See `DistributionCalibrator.calibrated`."""
        return calibrated_scale(maps, calibration)

    def central(self, maps: Tensor, truth: Tensor) -> Tensor:
        """See `DistributionCalibrator.central`."""
        return (2 * LogLaplace.from_prediction(maps.double()).cumulative(truth) - 1).abs().flatten()

    def nll(self, maps: Tensor, truth: Tensor) -> Tensor:
        """See `DistributionCalibrator.nll`; of log depth."""
        return LogLaplace.from_prediction(maps).negative_log_likelihood(truth).flatten()

    def constant_scale(self, maps: Tensor, truth: Tensor) -> float:
        """See `DistributionCalibrator.constant_scale`; the mean error of log depth."""
        return float((truth.log() - maps[:, 0].log()).abs().double().mean())

    def errors(self, maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """See `DistributionCalibrator.errors`; absolute relative errors, wrong by a factor of 1.25."""
        depth_m = maps[:, 0]
        return metrics.absolute_relative_error(depth_m, truth).flatten(), metrics.depth_is_wrong(depth_m, truth).flatten()

    def uncertainty(self, maps: Tensor) -> Tensor:
        """See `DistributionCalibrator.uncertainty`."""
        return scale_as_uncertainty(maps[:, 1]).flatten()

    def width(self, maps: Tensor, level: float) -> Tensor:
        """See `DistributionCalibrator.width`; logarithm of farthest by nearest depth."""
        nearest, farthest = LogLaplace.from_prediction(maps.double()).interval(level)
        return (farthest / nearest).log().flatten()


class DepthTask(ImageTask):
    """Depth estimation in metres."""

    name = "depth"
    model_class = Noise2MapForDepthEstimation
    sample_key = "depth_m"
    processor_argument = "depth_maps"
    stored_folder = "depth"
    in_metres = True
    screen_scores = ("abs_rel", "rmse", "delta1", "silog", "log10", "sq_rel", "rmse_log", "delta2", "delta3")
    compared_scores = card_scores = ("abs_rel", "rmse", "delta1", "silog")
    pipeline_tag = "depth-estimation"

    def true_array(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Metres ``(H, W)`` float32, 0 where invalid."""
        depth_m = np.asarray(sample["depth_m"], dtype=np.float32)
        return np.where(sample["valid"], depth_m, np.float32(0)) if "valid" in sample else depth_m

    def truth(self, sample: Mapping[str, Any]) -> Tensor:
        """Metres ``(H, W)`` float32, 0 where invalid."""
        return torch.from_numpy(np.ascontiguousarray(self.true_array(sample)))

    def maps(self, output: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Metres ``(H, W)``."""
        depths = processor.post_process_depth_estimation(output, target_sizes=list(sizes))
        return [entry["predicted_depth"].float().cpu() for entry in depths]

    def at_size(self, model: Any, prediction: Tensor, probabilities: bool, *sizes: tuple[int, int]) -> Tensor:
        """Metres, clamped to the model's range before they are resized, as published."""
        return resize_map(prediction.clamp(model.config.min_depth, model.config.max_depth), *sizes)

    def mean_output(self, mean: Tensor, **fields: Any) -> MapDepthOutput:
        """The mean depth."""
        return MapDepthOutput(predicted_depth=mean[:, 0], **fields)

    def blendable(self, prediction: Tensor, log_probabilities: bool) -> Tensor:
        """Metres as logarithms; scales and weights as they are."""
        values = prediction.float().clone()
        metres = self._metres(values.shape[1])
        values[:, metres] = values[:, metres].log()
        return values

    def blended(self, mean: Tensor) -> Tensor:
        """The geometric mean of metres."""
        for channel in self._metres(mean.shape[1]):
            mean[:, channel].exp_()
        return mean

    def aligned(self, tile: Tensor, anchor: Tensor) -> Tensor:
        """See `ImageTask.aligned`: depth times one factor, after which half of the pixels are nearer than in the whole map.

        What would leave the range of depths of both stays at its end.
        """
        values, metres = tile.clone(), self._metres(tile.shape[1])
        low, high = torch.minimum(tile[:, 0].min(), anchor.min()), torch.maximum(tile[:, 0].max(), anchor.max())
        values[:, metres] = (values[:, metres] + (anchor[:, 0] - tile[:, 0]).median()).clamp(low, high)
        return values

    @staticmethod
    def _metres(channels: int) -> list[int]:
        """Which channels of a prediction are depths, see `with_scale`: the map, and the medians of a mixture."""
        components = (channels - 2) // 3
        return [0, *range(2 + components, 2 + 2 * components)]

    def computed(self, output: Any) -> dict[str, Tensor]:
        """Metres, and the predicted scale of log depth."""
        scale = {} if output.predicted_scale is None else {"scale": output.predicted_scale}
        return {"depth_m": output.predicted_depth, **scale}

    def check_interval(self, model: Any, level: float) -> None:
        """See `ImageTask.check_interval`; a predicted scale does, or a calibration."""
        calibration = model.calibration
        if model.default_uncertainty != "scale" and (calibration is None or calibration.scale is None):
            raise ValueError(
                "the model states no interval of depth: it predicts no scale; calibrate it first (noise2map calibrate)"
            )

    def interval(self, output: Any, row: int, level: float, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
        """Metres."""
        ends = torch.stack([end[row] for end in output.interval(level)])[None]
        lower, upper = resize_map(ends.float(), *sizes)[0].cpu().numpy()
        return {"lower_m": lower, "upper_m": upper}

    def interval_images(self, prediction: Prediction, config: Any) -> dict[str, np.ndarray]:
        """``lower`` and ``upper``, in the units of the depth's file."""
        return {name.removesuffix("_m"): _depth_units(values, config) for name, values in prediction.interval.items()}

    def files(self, prediction: Prediction, name: str, config: Any) -> dict[str, tuple[str, bytes]]:
        """``depth``: a 16-bit PNG, see :func:`depth_png_scale`."""
        return {"depth": (f"depth/{name}.png", encode_image(Image.fromarray(_depth_units(prediction.map, config))))}

    def summary(self, prediction: Prediction, config: Any) -> dict[str, Any]:
        """Quantiles of the depth, the unit of the PNG, and the share of pixels whose interval ends beyond its largest number."""
        quantiles = np.quantile(prediction.map, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        names = ("min", "q05", "q25", "median", "q75", "q95", "max")
        found = {name: round(float(value), 4) for name, value in zip(names, quantiles)}
        scale = depth_png_scale(config.max_depth)
        facts: dict[str, Any] = {"depth_m": found, "depth_png_units_per_m": scale}
        if prediction.interval:
            beyond = np.rint(prediction.interval["upper_m"].astype(np.float64) * scale) > _FULL_16_BITS
            facts["upper_png_cut_share"] = round(float(beyond.mean()), 4)
        return facts

    def panel(self, prediction: Prediction, image: np.ndarray, heading: str, kind: str, truth: np.ndarray | None = None) -> Panel:
        """See `ImageTask.panel`; with color bars in metres."""
        return depth_panel(image, prediction.map, prediction.uncertainty, truth_m=truth, heading=heading, kind=kind)

    def map_from_image(self, path: Path, record: Mapping[str, Any], depth_scale: float) -> Tensor:
        """Metres ``(H, W)`` of a 16-bit image."""
        units = record.get("depth_png_units_per_m")
        return torch.from_numpy(open_depth_map(path, 1 / units if units else depth_scale))

    def map_from_array(self, values: np.ndarray, path: Path) -> Tensor:
        """Metres ``(H, W)``."""
        if values.ndim != 2 or values.dtype.kind != "f":
            raise ValueError(f"{path} holds {values.dtype} of shape {values.shape}; expected metres (H, W) in floating point")
        return torch.from_numpy(values.astype(np.float32))

    def stored_output(self, maps: Tensor, **fields: Any) -> MapDepthOutput:
        """Metres."""
        return MapDepthOutput(predicted_depth=maps, **fields)

    def paint(self, values: Tensor, reference: Tensor, palette: np.ndarray) -> np.ndarray:
        """See `ImageTask.paint`: near warm, far cold, on a logarithmic scale."""
        return colorize_depth(values.numpy(), *depth_range(reference.numpy()))

    def color_range(self, reference: Tensor) -> dict[str, Any]:
        """See `ImageTask.color_range`; metres."""
        return {"depth_m": [round(end, 4) for end in depth_range(reference.numpy())]}

    def training_metric(self, config: Any) -> "metrics.DepthScores":
        """See `Task.training_metric`."""
        return metrics.DepthScores(config.min_depth, config.max_depth, keep_per_image=False)

    def calibrator(self, model: Any) -> DepthCalibrator:
        """See `Task.calibrator`."""
        return DepthCalibrator((float(model.config.min_depth), float(model.config.max_depth)))

    def scorer(self, model: Any, options: ScoringOptions) -> Scorer:
        """See `Task.scorer`."""
        low, high = float(model.config.min_depth), float(model.config.max_depth)
        scored = options.depth_range_m or (low, high)
        farthest = high if options.farthest_m is None else min(high, options.farthest_m)
        return DepthScorer(*scored, (low, farthest), scoring_device(model)).with_options(options)
