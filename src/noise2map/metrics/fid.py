"""FID, KID and their depth versions on any feature extractor; a number always says whose features it was measured with."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from noise2map.metrics.feature_distances import FeatureStatistics, frechet_distance, kernel_distance
from noise2map.metrics.feature_resampling import feature_distance, resampled_distances
from noise2map.metrics.features import DepthFeatures, FeatureExtractor, Rendering, render_depth
from noise2map.metrics.intervals import centered_interval

ENOUGH_SAMPLES = 2048

_SIDES = ("generated", "reference")


@dataclass(frozen=True)
class Distance:
    """A distance with what it was measured on.

    Attributes:
        metric: `"FID"`, `"KID"`, `"dFID"` or `"dKID"`.
        value: The distance.
        low: Lower end of the interval at this number of samples; NaN if none was asked for.
        high: Upper end.
        bias: How much resampling raised it: about how much the value exceeds that of infinitely many samples.
        extractor: Name of the features.
        samples: Number of generated images.
        reference_samples: Number of reference images.
        reference: Name or checksum of the reference, if known.
    """

    metric: str
    value: float
    low: float
    high: float
    bias: float
    extractor: str
    samples: int
    reference_samples: int
    reference: str = ""

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        return (
            f"{self.metric} {self.value:.4g}{interval} (features: {self.extractor}; "
            f"{self.samples} against {self.reference_samples} images)"
        )

    def check_comparable(self, other: "Distance") -> None:
        """Refuses to compare distances of different kinds, features or references; warns of different numbers of samples.

        Raises:
            ValueError: Naming what differs.
        """
        for name in ("metric", "extractor", "reference", "reference_samples"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"distances of different {name} cannot be compared: {mine!r} and {theirs!r}")
        if self.samples != other.samples and self.metric.endswith("FID"):
            warnings.warn(
                f"{self.metric} of {self.samples} and {other.samples} images: it falls with the number of images", stacklevel=3
            )

    def __sub__(self, other: "Distance") -> float:
        self.check_comparable(other)
        return self.value - other.value

    def __lt__(self, other: "Distance") -> bool:
        self.check_comparable(other)
        return self.value < other.value


class FeatureDistance(Metric):
    """Common part of FID and KID: features of two sets of images, gathered batch by batch and over processes.

    Args:
        extractor: Reads the images.
        metric: Name of the distance.
        kind: `"frechet"` or `"kernel"`.
        keep_features: Keep all features (float32), which kernel distances and intervals need.
        allow_singular: Accept no more samples than there are features, where the covariance is singular.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    full_state_update = True  # the moments of two states are merged, not added
    higher_is_better = False
    is_differentiable = False

    def __init__(
        self,
        extractor: FeatureExtractor,
        metric: str,
        kind: str,
        keep_features: bool = True,
        allow_singular: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kind == "kernel" and not keep_features:
            raise ValueError("a kernel distance needs all features; keep_features must be True")
        self.extractor, self.metric, self.kind = extractor, metric, kind
        self.keep_features, self.allow_singular = keep_features, allow_singular
        self.reference_name = ""
        size = extractor.size
        for side in _SIDES:
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
            self.add_state(f"{side}_mean", torch.zeros(size, dtype=torch.float64), dist_reduce_fx=None)
            self.add_state(f"{side}_scatter", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx=None)
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            images: `(B, 3, H, W)` uint8.
            real: Whether they are reference images.

        Raises:
            ValueError: If the images have another shape or type, or a feature is NaN or infinite.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"images must be (B, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
        self.update_features(self.extractor(images), real)

    def update_features(self, features: Tensor, real: bool) -> None:
        """Add features `(B, D)` that this metric's extractor gave before.

        Raises:
            ValueError: If their number differs, or one is NaN or infinite.
        """
        if features.ndim != 2 or features.shape[1] != self.extractor.size:
            raise ValueError(f"features must be (B, {self.extractor.size}), got {tuple(features.shape)}")
        side = _SIDES[bool(real)]
        merged = self._statistics(side).merged(FeatureStatistics.of(features.to(self.device)))
        setattr(self, f"{side}_count", torch.tensor(merged.count, device=self.device))
        setattr(self, f"{side}_mean", merged.mean)
        setattr(self, f"{side}_scatter", merged.scatter)
        if self.keep_features:
            getattr(self, f"{side}_features").append(features.float().to(self.device))
        self._update_count = max(self._update_count, 1)
        self._computed = None

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; one that saw no image takes part with no features instead of hanging."""
        for side in _SIDES:
            kept = getattr(self, f"{side}_features")
            if self.keep_features and isinstance(kept, list) and not kept:
                kept.append(torch.zeros((0, self.extractor.size), device=self.device))
        super().sync(*args, **kwargs)

    def _statistics(self, side: str) -> FeatureStatistics:
        count, mean, scatter = (getattr(self, f"{side}_{name}") for name in ("count", "mean", "scatter"))
        if count.ndim == 0:
            return FeatureStatistics(int(count), mean, scatter)
        parts = [FeatureStatistics(int(n), m, s) for n, m, s in zip(count, mean, scatter)]  # one for each process
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.merged(part)
        return whole

    def _features(self, side: str) -> Tensor:
        kept = getattr(self, f"{side}_features")
        empty = torch.zeros((0, self.extractor.size), device=self.device)
        return dim_zero_cat([empty, *(kept if isinstance(kept, list) else [kept])])

    def _check_samples(self) -> tuple[FeatureStatistics, FeatureStatistics]:
        generated, reference = (self._statistics(side) for side in _SIDES)
        for side, statistics in zip(_SIDES, (generated, reference)):
            check_samples(self.metric, side, statistics.count, self.extractor.size, self.kind, allow_singular=self.allow_singular)
        return generated, reference

    def compute(self) -> Tensor:
        """The distance, a scalar in float64.

        Raises:
            ValueError: If there are too few images.
        """
        generated, reference = self._check_samples()
        if self.kind == "kernel":
            return kernel_distance(self._features("generated"), self._features("reference"))
        return frechet_distance(generated.mean, generated.covariance(), reference.mean, reference.covariance())

    def result(self, resamples: int = 200, seed: int = 0, confidence: float = 0.95) -> Distance:
        """The distance with its bootstrap interval and the name of the features, over the images of all processes.

        Args:
            resamples: Bootstrap resamples; 0 for no interval.
            seed: Of the resampling.
            confidence: Nominal coverage.

        Raises:
            ValueError: If there are too few images, or an interval is asked for and no features were kept.
        """
        if resamples and not self.keep_features:
            raise ValueError("an interval needs all features: make the metric with keep_features=True, or ask for 0 resamples")
        value = float(self.compute())  # gathers, and checks the number of images
        with self.sync_context(should_sync=self._to_sync, should_unsync=True):
            generated, reference = (self._features(side) for side in _SIDES)
            count, reference_count = (self._statistics(side).count for side in _SIDES)
        low = high = bias = math.nan
        if resamples:
            values = resampled_distances(self.kind, [generated], reference, resamples, seed)[:, 0]
            lowest = 0.0 if self.kind == "frechet" else -math.inf
            interval = centered_interval(value, values, count, confidence, lowest)
            low, high, bias = interval.low, interval.high, float(values.mean()) - value
        name = self.extractor.name
        return Distance(self.metric, value, low, high, bias, name, count, reference_count, self.reference_name)


def check_samples(metric: str, side: str, count: int, size: int, kind: str = "frechet", *, allow_singular: bool) -> None:
    """Refuses too few samples, and warns of few.

    Raises:
        ValueError: If there are fewer than two, or, for a Fréchet distance, no more than features unless that is allowed.
    """
    if count < 2:
        raise ValueError(f"{metric} needs at least 2 {side} images, got {count}")
    if kind == "frechet" and count <= size and not allow_singular:
        raise ValueError(
            f"{metric} of {count} {side} images and {size} features: the covariance is singular; take more than {size} images, "
            "an extractor with fewer features, KID, or allow_singular=True to have a number all the same"
        )
    if count < ENOUGH_SAMPLES:
        warnings.warn(
            f"{metric} of {count} {side} images: below {ENOUGH_SAMPLES} it mostly measures their number; read its interval",
            stacklevel=2,
        )


class FrechetDistance(FeatureDistance):
    """FID on the features of any extractor; arguments as of :class:`FeatureDistance`."""

    def __init__(self, extractor: FeatureExtractor, metric: str = "FID", **kwargs: Any) -> None:
        super().__init__(extractor, metric, "frechet", **kwargs)


class KernelDistance(FeatureDistance):
    """KID on the features of any extractor: unbiased at any number of samples; arguments as of :class:`FeatureDistance`."""

    def __init__(self, extractor: FeatureExtractor, metric: str = "KID", **kwargs: Any) -> None:
        super().__init__(extractor, metric, "kernel", **kwargs)


class DepthFrechetDistance(FrechetDistance):
    """dFID: FID of the depth estimated from both sets of images (DAG, Sec. 4); keywords as of :class:`DepthFeatures`."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        estimator: Callable[[Tensor], Tensor],
        rendering: Rendering = "disparity",
        estimator_name: str = "depth",
        depth_range: tuple[float, float] = (0.5, 40.0),
        **kwargs: Any,
    ) -> None:
        features = DepthFeatures(estimator, extractor, rendering, estimator_name, depth_range)
        super().__init__(features, "dFID", **kwargs)


__all__ = [
    "ENOUGH_SAMPLES",
    "DepthFeatures",
    "DepthFrechetDistance",
    "Distance",
    "FeatureDistance",
    "FeatureExtractor",
    "FrechetDistance",
    "KernelDistance",
    "check_samples",
    "feature_distance",
    "render_depth",
]
