"""What a map says about one pixel: how likely each class is, or how depth and directions are spread."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise2map.app.maps import MapResult
from noise2map.models.distributions.angular import AngularDistribution, angle_between
from noise2map.models.distributions.laplace import LogLaplace
from noise2map.models.normals import scale_degrees
from noise2map.models.resizing import resized_strips

LEVELS = (0.5, 0.9)
BINS = 24
_SHOWN_LEVEL = 0.96  # of what a model states; the rest may be far away
_MOST_CLASSES = 12
_FACING = (("right", "left"), ("up", "down"), ("towards you", "away from you"))  # axes of a map of normals, both ends


@dataclass
class PixelReport:
    """What is known of one pixel.

    Attributes:
        x: Column.
        y: Row.
        headline: The map there, in words.
        facts: Further lines, name and value.
        bars: Name, share in [0, 1] and color ``(r, g, b)`` of classes, the likeliest first.
        edges: Of the bins of a histogram, ``BINS + 1`` values, in `unit`; empty where nothing is spread.
        series: Name to the shares of the bins, each summing to 1 or less.
        marks: Name to a value in `unit`.
        unit: ``"m"`` or ``"°"``.
        what: What was asked about: ``"pixel"``, or ``"cell"`` of a map from above.
    """

    x: int
    y: int
    headline: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    bars: list[tuple[str, float, tuple[int, int, int]]] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    unit: str = ""
    what: str = "pixel"


def report_pixel(result: MapResult, x: int, y: int) -> PixelReport:
    """What the map says about a pixel of the image.

    Args:
        result: The map.
        x: Column, from 0.
        y: Row, from 0.

    Raises:
        ValueError: If there is no such pixel.
    """
    height, width = result.prediction.map.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"there is no pixel {x}, {y} in an image of {width} x {height}")
    if result.predictor.has_classes:
        report = _classes(result, x, y)
    elif result.predictor.in_metres:
        report = _depth(result, x, y)
    else:
        report = _direction(result, x, y)
    unsure = result.prediction.uncertainty
    if unsure is not None:
        report.facts.append((result.prediction.uncertainty_title, f"{float(unsure[y, x]):.3f}"))
    return report


def color_of(palette: np.ndarray, index: int) -> tuple[int, int, int]:
    """A row of a palette ``(K, 3)`` as whole numbers."""
    red, green, blue = palette[index].tolist()
    return red, green, blue


def share_text(share: float) -> str:
    """A probability in per cent, never 0 or 100: no model is so sure, only its last digits are gone."""
    return "< 0.1%" if share < 5e-4 else "> 99.9%" if share >= 1 - 5e-4 else f"{share:.1%}"


def class_probabilities(result: MapResult, x: int, y: int) -> np.ndarray:
    """Probabilities ``(K,)`` of the classes at a pixel; where they are largest is the class of the map."""
    logits, averaged = result.output.logits[0], bool(result.output.log_probabilities)
    top = 0
    for strip in resized_strips(logits.exp() if averaged else logits, *result.computed, result.prediction.map.shape[:2]):
        if y < top + strip.shape[1]:
            scores = strip[:, y - top, x]
            return (scores / scores.sum() if averaged else scores.softmax(0)).numpy()
        top += strip.shape[1]
    raise ValueError(f"there is no row {y}")


def _classes(result: MapResult, x: int, y: int) -> PixelReport:
    p, names, palette = class_probabilities(result, x, y), result.predictor.id2label, result.predictor.palette
    order = np.argsort(-p, kind="stable")
    report = PixelReport(x, y, f"{names[int(order[0])]}, {share_text(float(p[order[0]]))}")
    likeliest = [int(k) for k in order[:_MOST_CLASSES]]
    report.bars = [(names[k], float(p[k]), color_of(palette, k)) for k in likeliest]
    row, column = _cell(result, result.samples, x, y)
    votes = result.samples[:, :, row, column].argmax(1)
    if len(votes) > 1:
        counts = np.bincount(votes, minlength=len(p))
        said = ", ".join(f"{names[int(k)]} {counts[k]}" for k in np.argsort(-counts, kind="stable") if counts[k])
        report.facts.append((f"{len(votes)} samples say", said))
    return report


def _cell(result: MapResult, values: np.ndarray | Tensor, x: int, y: int) -> tuple[int, int]:
    """Row and column of maps ``(..., h, w)`` that a pixel of the image lies in."""
    height, width = result.prediction.map.shape[:2]
    return y * values.shape[-2] // height, x * values.shape[-1] // width


def _at(result: MapResult, values: np.ndarray, x: int, y: int) -> np.ndarray:
    """Of maps ``(N, 1, h, w)`` the values ``(N,)`` at a pixel."""
    row, column = _cell(result, values, x, y)
    return values[:, 0, row, column]


def depth_distribution(result: MapResult, x: int, y: int) -> LogLaplace | None:
    """The distribution that a model with a scale states at a pixel, ``(1, n, 1, 1)``; None for other models."""
    scale = result.output.predicted_scale
    if scale is None:
        return None
    row, column = _cell(result, scale, x, y)
    whole = result.predictor.model.whole_prediction(result.output)
    return LogLaplace.from_prediction(whole[:, :, row : row + 1, column : column + 1].float())


def _depth(result: MapResult, x: int, y: int) -> PixelReport:
    depth = float(result.prediction.map[y, x])
    report = PixelReport(x, y, f"{depth:.2f} m", unit="m", marks={"map": depth})
    samples, steps = _at(result, result.samples, x, y), _at(result, result.step_maps, x, y)
    stated = depth_distribution(result, x, y)
    spread = [*samples, *steps, depth]
    if stated is not None:
        for level in LEVELS:
            low, high = (float(one) for one in stated.interval(result.output.stated_level(level)))
            report.facts.append((f"{level:.0%} interval", f"{low:.2f} to {high:.2f} m"))
        spread += [float(one) for one in stated.interval(result.output.stated_level(_SHOWN_LEVEL))]
    low, high = max(min(spread), 1e-3), max(*spread, 1e-3)
    if high <= low * 1.0005:
        report.facts.append(("spread", "none: one value"))
        return report
    edges = np.geomspace(low / 1.02, high * 1.02, BINS + 1)
    report.edges = [float(one) for one in edges]
    if stated is not None:
        above = 2 * _cumulative(stated, edges) - 1  # of the median, -1 to 1: the level of the interval that ends there
        below = (1 + np.sign(above) * held_share(result, np.abs(above))) / 2
        report.series["stated by the model"] = [float(one) for one in np.diff(below)]
    _add_series(report, edges, samples, steps)
    return report


def _add_series(report: PixelReport, edges: np.ndarray, samples: np.ndarray, steps: np.ndarray) -> None:
    for name, values in ((f"{len(samples)} samples", samples), (f"{len(steps)} steps of one sample", steps)):
        if len(values) > 1:
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            report.series[name] = [float(one) for one in counts / len(values)]


def _direction(result: MapResult, x: int, y: int) -> PixelReport:
    normal = np.asarray(result.prediction.map[y, x], np.float32)
    report = PixelReport(x, y, _facing(normal), unit="°")
    stated, top = direction_distribution(result, x, y), 0.0
    if stated is not None:
        expected = float(scale_degrees(1 / stated.concentrations))
        report.facts.append(("expected error, stated by the model", f"{expected:.1f}°"))
        for level in LEVELS:
            cone = float(stated.cone(result.output.stated_level(level)))
            report.facts.append((f"{level:.0%} cone", f"within {cone:.1f}°"))
            report.marks[f"{level:.0%} cone"] = cone
        top = max(float(stated.cone(result.output.stated_level(_SHOWN_LEVEL))), *report.marks.values())
    angles = [_angles(result, values, normal, x, y) for values in (result.samples, result.step_maps)]
    top = max([top, *(float(one.max()) for one in angles if len(one) > 1)])
    if top > 0.05:
        edges = np.linspace(0, top * 1.001, BINS + 1)
        report.edges = [float(one) for one in edges]
        if stated is not None:
            below = held_share(result, _cumulative(stated, np.radians(edges)))
            report.series["stated by the model"] = [float(one) for one in np.diff(below)]
        _add_series(report, edges, *angles)
    return report


def _cumulative(stated: LogLaplace | AngularDistribution, edges: np.ndarray) -> np.ndarray:
    """Probabilities ``(N,)`` of less than each of the edges ``(N,)``, of a distribution at one pixel."""
    return np.array([float(stated.cumulative(torch.full((1, 1, 1), float(one)))) for one in edges])


def held_share(result: MapResult, stated: np.ndarray) -> np.ndarray:
    """Shares of the truths ``(N,)`` that intervals or cones of stated levels hold: `stated_level` the other way round.

    Without it the bars of a calibrated model would contradict the intervals beside them.
    """
    shares = np.linspace(0, 1, 401)
    levels = [result.output.stated_level(float(one)) for one in shares[1:-1]]
    return np.interp(stated, [0.0, *levels, 1.0], shares)


def direction_distribution(result: MapResult, x: int, y: int) -> AngularDistribution | None:
    """The distribution of directions about that of the map which a model states at a pixel, ``(1, 3, 1, 1)``; None for others."""
    spread = result.output.spread
    if spread is None:
        return None
    row, column = _cell(result, spread, x, y)
    place = ..., slice(row, row + 1), slice(column, column + 1)
    return AngularDistribution(result.output.prediction[place].float(), 1 / spread[place].float())


def _facing(normal: np.ndarray) -> str:
    """Where a surface faces, the largest part first; what is less than a twentieth is left out."""
    parts = [(abs(float(value)), pair[int(value < 0)]) for value, pair in zip(normal, _FACING)]
    words = [f"{name} {size:.2f}" for size, name in sorted(parts, key=lambda part: -part[0]) if size >= 0.05]
    return f"faces {', '.join(words)}" if words else "no direction"


def _angles(result: MapResult, maps: np.ndarray, normal: np.ndarray, x: int, y: int) -> np.ndarray:
    """Degrees between the directions of maps ``(N, 3, h, w)`` at a pixel and that of the final map, ``(N,)``."""
    if not len(maps):
        return np.zeros(0)
    row, column = _cell(result, maps, x, y)
    found: Any = torch.from_numpy(maps[:, :3, row, column])
    return np.degrees(angle_between(found, torch.from_numpy(normal)[None].expand_as(found)).numpy())
