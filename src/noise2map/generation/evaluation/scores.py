"""Distances and plausibility of several ways to draw images at equal seeds: estimates, intervals, paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noise2map.generation.evaluation.measurements import GEOMETRY_SCORES, ImageFeatures
from noise2map.metrics import (
    Interval,
    bootstrap_intervals,
    centered_interval,
    extrapolated_distance,
    feature_distance,
    paired_bootstrap_intervals,
    resampled_distances,
)
from noise2map.metrics.feature_resampling import FEWEST_SAMPLES
from noise2map.runs.progress import progress_bar

Row = dict[str, Any]

# Name of a distance -> kind, and which features it compares.
# First those without a bias of the number of images.
DISTANCES = {
    "KID": ("kernel", "image_features"),
    "dKID": ("kernel", "depth_features"),
    "FID": ("frechet", "image_features"),
    "dFID": ("frechet", "depth_features"),
}

# Whose difference is asked for first: the order that DAG reports (both < DCG < DPG < none in dFID).
CLAIMS = (("DCG", "none"), ("DPG", "none"), ("both", "none"), ("DCG", "DPG"), ("both", "DCG"))
CLAIMS += (("both", "none, equal cost"), ("DCG", "none, equal cost"))


@dataclass
class SettingScores:
    """Scores of S settings against one reference.

    Attributes:
        names: Of the settings.
        samples: Number of images of each.
        distances: Name of a distance to its intervals, one for each setting.
        biases: Name of a Fréchet distance to what resampling raised it by, one for each setting; NaN without resamples.
        extrapolated: Name of a Fréchet distance to its values for infinitely many images; empty without resamples.
        real: Distances of real images from other real ones, the best that can be reached: a row, empty without enough references.
        draws: Name of a distance to its resampled values `(n, S)`; empty without resamples.
        plausibility: Rows of each setting `(N, P)`.
        reference_plausibility: Those of the references.
        seconds: Time of an image, for each setting.
    """

    names: list[str]
    samples: int
    distances: dict[str, list[Interval]]
    biases: dict[str, list[float]]
    extrapolated: dict[str, list[float]]
    real: Row
    draws: dict[str, Tensor]
    plausibility: list[Tensor]
    reference_plausibility: Tensor
    seconds: list[float]

    def rows(self) -> list[Row]:
        """One row for each setting; then real images against other real ones; then the references' own scores."""
        rows = []
        for place, name in enumerate(self.names):
            row: Row = {"setting": name, "images": self.samples}
            for metric in DISTANCES:
                row |= _cells(metric, self.distances[metric][place])
                if metric in self.biases:
                    row[f"{metric}_bias"] = self.biases[metric][place]
                    row[f"{metric}_inf"] = self.extrapolated[metric][place]
            row |= _plausibility(self.plausibility[place])
            row["seconds_per_image"] = self.seconds[place]
            rows.append(row)
        references = {"setting": "references", "images": len(self.reference_plausibility)}
        real = [{"setting": "real", **self.real}] if self.real else []
        return [*rows, *real, references | _plausibility(self.reference_plausibility)]

    def differences(self, pairs: Any = CLAIMS) -> list[Row]:
        """Paired differences of settings, seed by seed, with intervals; a row for each pair and score."""
        rows = []
        for this, minus in pairs:
            if this not in self.names or minus not in self.names:
                continue
            a, b = self.names.index(this), self.names.index(minus)
            for metric, values in self.draws.items():
                estimate = self.distances[metric][a].estimate - self.distances[metric][b].estimate
                rows.append(
                    _difference(this, minus, metric, centered_interval(estimate, values[:, a] - values[:, b], self.samples))
                )
            intervals = paired_bootstrap_intervals(self.plausibility[a], self.plausibility[b])
            rows += [
                _difference(this, minus, score, interval)
                for score, interval in zip(GEOMETRY_SCORES, intervals)
                if interval.estimate == interval.estimate
            ]
        return rows


def score_settings(
    sets: Mapping[str, ImageFeatures],
    reference: ImageFeatures,
    seconds: Mapping[str, float],
    resamples: int = 200,
) -> SettingScores:
    """Compare sets of images of equal seeds with the reference.

    Args:
        sets: Name of a setting to its measurements; all of the same number of images, in the order of the seeds.
        reference: Measurements of real images.
        seconds: Name of a setting to the time of an image.
        resamples: Of the bootstrap; 0 for no intervals and no differences of distances.

    Raises:
        ValueError: If the numbers of images differ or there are fewer than two.
    """
    names, counts = list(sets), {len(one) for one in sets.values()}
    if len(counts) != 1:
        raise ValueError(f"settings must have one number of images, got {sorted(counts)}")
    count = counts.pop()
    found = SettingScores(
        names,
        count,
        {},
        {},
        {},
        {},
        {},
        [sets[name].plausibility for name in names],
        reference.plausibility,
        [seconds[name] for name in names],
    )
    part_of = _part_of(len(reference), count)
    if part_of is not None:
        found.real["images"] = int(part_of.sum())
    for metric, (kind, part) in sorted(DISTANCES.items(), key=lambda item: item[1]):
        features, base = [getattr(sets[name], part) for name in names], getattr(reference, part)
        values = [float(feature_distance(kind, one, base)) for one in features]
        if part_of is not None:
            found.real[metric] = float(feature_distance(kind, base[part_of], base[~part_of]))
        if not resamples:
            found.distances[metric] = [Interval(value, torch.nan, torch.nan, 0.95, count) for value in values]
            continue
        if kind == "frechet":
            enough = min(count, len(base)) >= FEWEST_SAMPLES
            found.extrapolated[metric] = [extrapolated_distance(one, base) if enough else torch.nan for one in features]
        with progress_bar(total=resamples, desc=f"{metric} resamples") as bar:
            draws = resampled_distances(kind, features, base, resamples, on_resample=bar.update)
        found.draws[metric] = draws
        lowest = 0.0 if kind == "frechet" else -torch.inf
        found.distances[metric] = [
            centered_interval(value, draws[:, place], count, lowest=lowest) for place, value in enumerate(values)
        ]
        if kind == "frechet":
            found.biases[metric] = [float(draws[:, place].mean()) - value for place, value in enumerate(values)]
    return found


def _part_of(references: int, count: int) -> Tensor | None:
    """Which references, spread over all, are compared with the others: as many as a setting has, at most half; None for too few."""
    size = min(count, references // 2)
    if size < 2:
        return None
    chosen = torch.zeros(references, dtype=torch.bool)
    chosen[torch.linspace(0, references - 1, size).round().long()] = True
    return chosen


def _cells(name: str, interval: Interval) -> Row:
    """An estimate with its interval, if there is one."""
    known = {f"{name}_low": interval.low, f"{name}_high": interval.high} if interval.low == interval.low else {}
    return {name: interval.estimate, **known}


def _plausibility(rows: Tensor) -> Row:
    """Means of the scores that are defined, with intervals over images."""
    row: Row = {}
    for name, interval in zip(GEOMETRY_SCORES, bootstrap_intervals(rows)):
        if interval.estimate == interval.estimate:
            row |= _cells(name, interval)
    return row


def _difference(this: str, minus: str, score: str, interval: Interval) -> Row:
    return {
        "this": this,
        "minus": minus,
        "score": score,
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "certain": interval.excludes_zero(),
    }
