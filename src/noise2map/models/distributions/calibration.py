"""What a calibration found on labelled images, as a checkpoint keeps it: temperatures, and intervals and sets by level."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# A central interval further out than this holds all but 1e-9 of a distribution, whatever its level is called.
_FARTHEST = 20.0
_SUREST = 1 - 1e-6  # no class is certain
_LEAD = 1e-3  # nats by which the likeliest class stays ahead


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Corrections of what a model states, fitted on labelled images (`noise2map calibrate`).

    Attributes:
        temperature: Divides the logits (Guo et al. 2017), one number, or one for each layer; multiplies a predicted scale.
        confidences: Knots ``(confidence, share of right pixels)`` of a rising curve, of classes: the likeliest class gets the
            probability that it came true with (Zadrozny & Elkan 2002), after the temperature.
        scale: A scale that holds at every pixel, for a model that predicts none; replaces the one of a model that does.
        levels: Levels of coverage, ascending, between 0 and 1.
        radii: For each level the radius of the interval that holds so many truths, for depth and directions. The unit is that of
            the model's own statement: its central interval of probability ``p`` has the radius ``-log(1 - p)``, which for a Laplace
            distribution is the distance from the median in scales.
        thresholds: For each level the least probability of a class in the set that holds so many truths.
        fitted_on: How it was fitted, for the record.

    Raises:
        ValueError: if a number cannot be one.
    """

    temperature: float | tuple[float, ...] = 1.0
    confidences: tuple[tuple[float, float], ...] = ()
    scale: float | None = None
    levels: tuple[float, ...] = ()
    radii: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    fitted_on: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        temperatures = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        _check("temperature", temperatures, lambda x: x > 0, "positive numbers")
        if any(not isinstance(knot, tuple) or len(knot) != 2 for knot in self.confidences):
            raise ValueError(f"calibration.confidences is {list(self.confidences)}; expected pairs of confidence and share")
        _check("confidences", [one for knot in self.confidences for one in knot], lambda x: 0 <= x <= 1, "probabilities")
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in itertools.pairwise(self.confidences)):
            raise ValueError(f"calibration.confidences is {list(self.confidences)}; expected rising pairs")
        _check("scale", () if self.scale is None else (self.scale,), lambda x: x > 0, "a positive number")
        _check("levels", self.levels, lambda x: 0 < x < 1, "levels between 0 and 1")
        _check("radii", self.radii, lambda x: x >= 0, "numbers of at least 0")
        _check("thresholds", self.thresholds, lambda x: 0 <= x <= 1, "probabilities")
        for name, values, rising in (("levels", self.levels, 1), ("radii", self.radii, 1), ("thresholds", self.thresholds, -1)):
            if any(rising * before > rising * after for before, after in itertools.pairwise(values)):
                raise ValueError(f"calibration.{name} is {list(values)}; expected {'rising' if rising > 0 else 'falling'} numbers")
            if values and len(values) != len(self.levels):
                count = len(self.levels)
                raise ValueError(f"calibration.{name} has {len(values)} numbers; expected one for each of {count} levels")

    @classmethod
    def read(cls, value: Mapping[str, Any] | None, parts: Sequence[str] | None = None) -> "Calibration | None":
        """Reads the field of a configuration.

        Args:
            value: What `as_field` gave, or `None`.
            parts: Names that the task knows, beside ``temperature``, ``levels`` and ``fitted_on``; all by default.

        Raises:
            ValueError: for a name that does not exist or is another task's, or a number that cannot be one.
        """
        if value is None:
            return None
        every = ("confidences", "scale", "radii", "thresholds")
        known = {"temperature", "levels", "fitted_on", *(every if parts is None else parts)}
        for name in value:
            if name not in known:
                raise ValueError(f"calibration holds {name!r}; expected {', '.join(sorted(known))}")
        lists: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in value.items()}
        for name in ("levels", "radii", "thresholds", "confidences"):
            if not isinstance(lists.get(name, ()), tuple):
                raise ValueError(f"calibration.{name} is {lists[name]!r}; expected a list of numbers")
        knots = lists.get("confidences", ())
        return cls(**{**lists, "confidences": tuple(tuple(knot) if isinstance(knot, list | tuple) else knot for knot in knots)})

    def as_field(self) -> dict[str, Any]:
        """JSON values for the field of a configuration; what was not fitted is left out."""
        lists: dict[str, Any] = {name: list(one) if isinstance(one, tuple) else one for name, one in asdict(self).items()}
        lists["confidences"] = [list(knot) for knot in self.confidences]
        return {name: one for name, one in lists.items() if one is not None and one != []}

    def cool(self, logits: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)`` divided by the temperature, or each layer's by its own."""
        if isinstance(self.temperature, tuple):
            return logits / logits.new_tensor(self.temperature).view(-1, 1, 1)
        return logits / self.temperature

    def correct_classes(self, logits: Tensor) -> Tensor:
        """Logits of classes ``(B, K, h, w)`` whose softmax is calibrated: cooled, and with the confidence that came true.

        The other classes share what the likeliest one leaves in the proportion that they had; it stays the likeliest.
        """
        cooled = self.cool(logits)
        if not self.confidences or logits.shape[1] < 2:  # of one class nothing is unsure
            return cooled
        log_p = cooled.float().log_softmax(1)
        (log_first, log_second), places = log_p.topk(2, 1)[0].unbind(1), log_p.argmax(1, keepdim=True)
        log_rest = log_p.scatter(1, places, -math.inf).logsumexp(1)  # 1 - p of the likeliest, also where p rounds to 1
        share = self._came_true(log_first.exp())
        # The likeliest class stays the likeliest: of what it leaves the second gets exp(log_second - log_rest).
        least = torch.sigmoid(log_second - log_rest + _LEAD)
        share = torch.maximum(share, least).clamp(max=_SUREST)
        others = log_p + (torch.log1p(-share) - log_rest).unsqueeze(1)
        return others.scatter(1, places, share.log().unsqueeze(1)).to(logits.dtype)

    def _came_true(self, confidence: Tensor) -> Tensor:
        """Share of right pixels at confidences of any shape, by linear interpolation between the knots, 0 at 0 and 1 at 1."""
        stated, true = confidence.new_tensor([(0.0, 0.0), *self.confidences, (1.0, 1.0)]).T.contiguous()
        above = torch.searchsorted(stated, confidence.contiguous()).clamp(1, len(stated) - 1)
        low, high = stated[above - 1], stated[above]
        part = (confidence - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        return true[above - 1] + part * (true[above] - true[above - 1])

    def scales(self, predicted: Tensor) -> Tensor:
        """Predicted scales of any shape, corrected."""
        assert isinstance(self.temperature, float | int)
        return predicted * self.temperature if self.scale is None else torch.full_like(predicted, self.scale)

    def stated_level(self, level: float) -> float:
        """Level at which the model's own interval holds ``level`` of the truths.

        Between fitted levels radii are interpolated linearly, beyond them they grow in proportion.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        check_level(level)
        if not self.radii:
            return level
        places, radii = [0.0, *(-math.log1p(-one) for one in self.levels)], [0.0, *self.radii]
        place = -math.log1p(-level)
        if place >= places[-1]:
            radius = radii[-1] * place / places[-1]
        else:
            above = next(index for index, one in enumerate(places) if one > place)
            share = (place - places[above - 1]) / (places[above] - places[above - 1])
            radius = radii[above - 1] + share * (radii[above] - radii[above - 1])
        return -math.expm1(-min(max(radius, 1e-9), _FARTHEST))

    def least_probability(self, level: float) -> float:
        """Least probability of a class in the set that holds ``level`` of the truths.

        Between fitted levels the larger set is taken.

        Raises:
            ValueError: if the level is not between 0 and 1, or beyond those that were fitted.
        """
        check_level(level)
        fitted = dict(zip(self.levels, self.thresholds))
        if not fitted or level > max(fitted) + 1e-9:
            expected = f"at most {max(fitted):g}" if fitted else "a calibrated model (noise2map calibrate)"
            raise ValueError(f"level is {level!r}, for which no set of classes was fitted; expected {expected}")
        return fitted[min(one for one in fitted if one >= level - 1e-9)]


def check_level(level: float) -> None:
    """Refuses what is no level of coverage.

    Raises:
        ValueError: if it is not between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, float | int) or not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a probability between 0 and 1, such as 0.9")


def likely_classes(probabilities: Tensor, least: float, dim: int = 1) -> Tensor:
    """Set of classes of every pixel, bool, of the shape of the probabilities: those of at least ``least``, and the likeliest.

    Least ambiguous sets (Sadinle, Lei & Wasserman 2019) that are never empty.
    """
    return (probabilities >= least) | (probabilities == probabilities.amax(dim, keepdim=True))


def _check(name: str, values: Sequence[Any], fits: Any, expected: str) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value) or not fits(value):
            raise ValueError(f"calibration.{name} is {value!r}; expected {expected}")
