"""Calibrators: what fitting and scoring a calibration needs to know of a task, on pixels drawn from labelled maps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from noise2map import metrics
from noise2map.data.transforms import identity_generator
from noise2map.metrics.conformal import conformal_threshold, fit_scale_factor, level_error
from noise2map.models.distributions.calibration import Calibration

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Levels of coverage that are fitted where none are chosen."""

SCORED_LEVELS = (0.5, 0.9)

SET_LEVELS = (0.9, 0.95)
"""Of sets of classes, which never hold less than the likeliest class: lower levels say nothing."""

_FARTHEST = 1 - 1e-9  # central probability of a truth beyond all that a distribution knows
_FITTED = 200_000  # pixels that a likelihood is minimised over


@dataclass
class DrawnPixels:
    """Pixels of labelled maps, with what a model stated there.

    Attributes:
        stated: What the model states, ``(P, K')`` float32: logits, or a map with the parameters of its distribution.
        truth: The true map ``(P, ...)``.
        image: Number of the image of each pixel ``(P,)``.
    """

    stated: Tensor
    truth: Tensor
    image: Tensor

    def of_images(self, images: Sequence[int]) -> "DrawnPixels":
        """The pixels of some images."""
        chosen = torch.isin(self.image, torch.tensor(list(images), dtype=torch.long))
        return DrawnPixels(self.stated[chosen], self.truth[chosen], self.image[chosen])

    def as_maps(self) -> tuple[Tensor, Tensor]:
        """Both as maps of one row: ``(1, K', P, 1)`` and ``(1, ..., P, 1)``."""
        return self.stated.T[None, ..., None], self.truth.movedim(0, -1)[None, ..., None]


class Calibrator(ABC):
    """Fits and scores calibrations of one model.

    Attributes:
        methods: How what the model states can be corrected.
        method: How it is.
    """

    methods: ClassVar[tuple[str, ...]] = ("temperature",)
    method: str = "temperature"

    def by(self, method: str) -> "Calibrator":
        """This calibrator with another method.

        Raises:
            ValueError: If maps of the task are not corrected so.
        """
        if method not in self.methods:
            expected = " or ".join(map(repr, self.methods))
            raise ValueError(f"method is {method!r}; expected {expected} for this model")
        self.method = method
        return self

    @abstractmethod
    def stated(self, output: Any, row: int, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """What an output states of one image, at the size of the truth: ``(K', H, W)``."""

    @abstractmethod
    def known(self, truth: Tensor) -> Tensor:
        """Which pixels of a true map ``(..., H, W)`` are known, bool ``(H, W)``."""

    @abstractmethod
    def fit(self, pixels: DrawnPixels, levels: Sequence[float], groups: Tensor | None) -> Calibration:
        """The calibration of some pixels.

        Args:
            pixels: Of the calibrating images.
            levels: Levels of coverage; those that so few groups cannot reach are left out.
            groups: See `conformal_threshold`.

        Raises:
            ValueError: If there is nothing to fit.
        """

    @abstractmethod
    def scores(self, pixels: DrawnPixels, calibration: Calibration | None) -> dict[str, float]:
        """``error``, ``ece``, ``nll``, ``auroc`` and what else is told of a calibration; NaN where the model states nothing."""

    @abstractmethod
    def reliability(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[list[float], list[float]]:
        """What was promised and what came true, from 0 to 1: the curve of a reliability plot."""

    def baselines(self, pixels: DrawnPixels, fitted: Calibration, groups: Tensor | None) -> dict[str, Calibration]:
        """What a fitted calibration is to be compared with, by name, fitted on the same pixels."""
        return {"temperature": Calibration(temperature=fitted.temperature)}

    def thresholds(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[float, ...] | None:
        """Probability from which each layer is shown, fitted to calibrated pixels; None where maps have no overlapping layers."""
        return None

    def shown_scores(
        self, pixels: DrawnPixels, calibration: Calibration | None, thresholds: Sequence[float] | None
    ) -> dict[str, float]:
        """Scores of the map that is shown at thresholds, or at none; none where maps have no overlapping layers."""
        return {}

    def draw(
        self, output: Any, processed: tuple[int, int], truths: Sequence[Tensor], ids: Sequence[str], count: int, seed: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Draws pixels of every image of a batch, each by (seed, id).

        Args:
            output: What `decode_map` gave.
            processed: Height and width that went into the model.
            truths: True map of each image.
            ids: Ids of the images.
            count: Most pixels of an image.
            seed: Of the draws.

        Returns:
            For each image what is stated ``(p, K')`` and true ``(p, ...)``.
        """
        drawn = []
        for row, (truth, name) in enumerate(zip(truths, ids)):
            places = self.known(truth).flatten().nonzero()[:, 0]
            order = identity_generator(seed, name).permutation(len(places))[:count]
            places = places[torch.from_numpy(order)]
            stated = self.stated(output, row, processed, (truth.shape[-2], truth.shape[-1])).float().cpu()
            drawn.append((stated.flatten(1)[:, places].T.contiguous(), truth.flatten(-2)[..., places].movedim(-1, 0)))
        return drawn


def check_pixels(pixels: DrawnPixels) -> None:
    """Refuses pixels that nothing can be fitted on.

    Raises:
        ValueError: If there is none, or something stated is not finite.
    """
    if not len(pixels.stated):
        raise ValueError("no pixel of the calibrating images is labelled; there is nothing to calibrate on")
    if not bool(torch.isfinite(pixels.stated).all()):
        raise ValueError("the model's output is not finite; it cannot be calibrated")


def error_auroc(uncertainty: Tensor, wrong: Tensor) -> float:
    """Probability that a wrong pixel is less certain than a right one, of uncertainties in [0, 1] and bools ``(P,)``."""
    found = metrics.UncertaintyScores("binary", keep_per_image=False)
    found.update(uncertainty.clamp(0, 1)[None, :, None], wrong[None, :, None])
    return float(found.compute()["auroc"])


def confidence_error(confidence: Tensor, right: Tensor) -> tuple[float, tuple[list[float], list[float]]]:
    """Expected calibration error of confidences and bools ``(P,)``, and confidence and accuracy of the bins that hold pixels."""
    found = metrics.ExpectedCalibrationError()
    found.update(confidence[None, :, None], right[None, :, None])
    curve = found.reliability()
    full = curve["share"] > 0
    return float(found.compute()["ece"]), (curve["confidence"][full].tolist(), curve["accuracy"][full].tolist())


class DistributionCalibrator(Calibrator):
    """Of maps whose head states a distribution, or nothing: a scale, and intervals about the map.

    The conformal score of a truth is the radius of the central interval that just holds it (Chernozhukov, Wüthrich & Zhu 2021,
    "Distributional conformal prediction"), see `Calibration.radii`.
    """

    @abstractmethod
    def has_scale(self, stated: Tensor) -> bool:
        """Whether ``(P, K')`` holds more than a map."""

    @abstractmethod
    def calibrated(self, maps: Tensor, calibration: Calibration) -> Tensor:
        """What is stated ``(1, K', P, 1)`` with calibrated scales."""

    @abstractmethod
    def central(self, maps: Tensor, truth: Tensor) -> Tensor:
        """Probability of the central interval that just holds each truth, ``(P,)``."""

    @abstractmethod
    def nll(self, maps: Tensor, truth: Tensor) -> Tensor:
        """Negative log-likelihood of each truth, nats ``(P,)``."""

    @abstractmethod
    def constant_scale(self, maps: Tensor, truth: Tensor) -> float:
        """The one scale under which the truths are likeliest."""

    @abstractmethod
    def errors(self, maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Error of each pixel and whether it counts as wrong, ``(P,)`` each."""

    @abstractmethod
    def uncertainty(self, maps: Tensor) -> Tensor:
        """Uncertainty in [0, 1] by the stated scale, ``(P,)``."""

    @abstractmethod
    def width(self, maps: Tensor, level: float) -> Tensor:
        """Width of the stated interval of a level, ``(P,)``, in the unit of the task."""

    def fit(self, pixels: DrawnPixels, levels: Sequence[float], groups: Tensor | None) -> Calibration:
        """See `Calibrator.fit`; the scale's factor by likelihood, then a radius for each level."""
        check_pixels(pixels)
        maps, truth = pixels.as_maps()
        if not self.has_scale(pixels.stated):
            return self._with_radii(Calibration(scale=self.constant_scale(maps, truth)), pixels, levels, groups)
        step = max(1, len(pixels.stated) // _FITTED)
        few, few_truth = maps[:, :, ::step], truth[..., ::step, :]
        factor = fit_scale_factor(
            lambda factor: float(self.nll(self.calibrated(few, Calibration(temperature=factor)), few_truth).mean())
        )
        return self._with_radii(Calibration(temperature=factor), pixels, levels, groups)

    def _with_radii(self, found: Calibration, pixels: DrawnPixels, levels: Sequence[float], groups: Tensor | None) -> Calibration:
        maps, truth = pixels.as_maps()
        radii = -torch.log1p(-self.central(self.calibrated(maps, found), truth).double().clamp(max=_FARTHEST))
        fitted = [(level, conformal_threshold(radii, level, groups)) for level in levels]
        reached = [(level, radius) for level, radius in fitted if math.isfinite(radius)]
        return replace(found, levels=tuple(level for level, _ in reached), radii=tuple(radius for _, radius in reached))

    def baselines(self, pixels: DrawnPixels, fitted: Calibration, groups: Tensor | None) -> dict[str, Calibration]:
        """See `Calibrator.baselines`; also an interval that is as wide everywhere, by the quantiles of the error."""
        if fitted.scale is not None:
            return {}  # it is that interval itself
        maps, truth = pixels.as_maps()
        constant = Calibration(scale=self.constant_scale(maps, truth))
        constant = self._with_radii(constant, pixels, fitted.levels, groups)
        return super().baselines(pixels, fitted, groups) | {"constant interval": constant}

    def _shares(self, pixels: DrawnPixels, calibration: Calibration | None, levels: Sequence[float]) -> list[float]:
        maps, truth = pixels.as_maps()
        found = calibration or Calibration()
        central = self.central(self.calibrated(maps, found), truth)
        return [float((central <= found.stated_level(level)).double().mean()) for level in levels]

    def _silent(self, pixels: DrawnPixels, calibration: Calibration | None) -> bool:
        return not self.has_scale(pixels.stated) and (calibration is None or calibration.scale is None)

    def scores(self, pixels: DrawnPixels, calibration: Calibration | None) -> dict[str, float]:
        """See `Calibrator.scores`; ``coverage_50``, ``coverage_90`` and the mean ``width_90``.

        ``ece`` is the mean gap between coverage and level, see `level_error`.
        """
        maps, truth = pixels.as_maps()
        error, wrong = self.errors(maps, truth)
        found = {"error": float(error.double().mean())}
        if self._silent(pixels, calibration):
            names = ("ece", "nll", *(f"coverage_{round(100 * level)}" for level in SCORED_LEVELS), "width_90", "auroc")
            return found | dict.fromkeys(names, math.nan)
        corrected = self.calibrated(maps, calibration or Calibration())
        found["ece"] = level_error(self._shares(pixels, calibration, LEVELS), LEVELS)
        found["nll"] = float(self.nll(corrected, truth).double().mean())
        for level, share in zip(SCORED_LEVELS, self._shares(pixels, calibration, SCORED_LEVELS)):
            found[f"coverage_{round(100 * level)}"] = share
        found["width_90"] = float(self.width(corrected, (calibration or Calibration()).stated_level(0.9)).double().mean())
        return found | {"auroc": error_auroc(self.uncertainty(corrected), wrong)}

    def reliability(self, pixels: DrawnPixels, calibration: Calibration | None) -> tuple[list[float], list[float]]:
        """See `Calibrator.reliability`; coverage of intervals."""
        if self._silent(pixels, calibration):
            return [], []
        return list(LEVELS), self._shares(pixels, calibration, LEVELS)
