"""Decoding options: how a map is decoded from the features of an image."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from noise2map.diffusion import image_generator
from noise2map.models.distributions.calibration import check_level
from noise2map.models.image_processing import MIN_SIDE

AVERAGES = ("last", "steps")

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m")

REFINEMENTS = ("all", "uncertain")

_REFINEMENT = ("refine", "refine_share", "refine_threshold")

SAMPLINGS = ("diffusion", "one_pass", "field")

# Far more than does any good: scores level off after ten steps. A slip of the hand is refused instead of running for days.
MAX_STEPS = 1000

MAX_SAMPLES = 1000

_Options = TypeVar("_Options", bound="DecodingOptions")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of a decoding. None means the checkpoint's default.

    Attributes:
        num_inference_steps: Decoder calls, 1 to 1000, or ``"auto"``: each image stops when its map stops changing.
        ensemble_size: Noise samples of an image, always averaged, 1 to 1000.
        average: ``"last"`` step or mean over ``"steps"``.
        sampler: ``"ddim"``, ``"ddpm"`` or ``"dpmpp_2m"``.
        sampling: ``"diffusion"`` is a run of steps from noise; ``"one_pass"`` one call, which says how likely everything is in
            each pixel; ``"field"`` one call, whose marginals are then drawn from with noise that is smooth over the map
            (`Noise2MapConfig.field_smoothness`): ``ensemble_size`` coherent maps at the cost of one. Several steps of it denoise
            these maps from `Noise2MapConfig.field_level` on, so that single ones are right more often. Where sampling is not
            chosen, asking for several steps or samples of a one-pass checkpoint means diffusion.
        field_smoothness: Width of the smooth noise of ``"field"``, in cells; 0 draws every cell by itself, infinity one luck for
            the whole map.
        refine: ``"all"`` tokens at every step, or from the second step on the ``"uncertain"`` ones alone: the others keep what the
            first step said, see `SparseRefinement`. A run of one step has none.
        refine_share: Share of the tokens that are refined, above 0, at most 1; 1 is a run of ``"all"``.
        refine_threshold: In place of a share: the uncertainty from which on a token is refined, so that easy images cost less than
            hard ones. At least 0, which is a run of ``"all"``; in the units of `MapModel.cell_uncertainty`: one minus the
            probability of the likeliest class (of layers twice that of the less likely state, where that is largest), the scale of
            log depth, the spread of directions in radians.
        seed: With the id of an image, it fixes that image's noise.

    Raises:
        ValueError: If a value cannot work.
    """

    num_inference_steps: int | str | None = None
    ensemble_size: int | None = None
    average: str | None = None
    sampler: str | None = None
    sampling: str | None = None
    field_smoothness: float | None = None
    refine: str | None = None
    refine_share: float | None = None
    refine_threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot work; whole numbers of NumPy become Python's, as records are JSON."""
        for name in ("num_inference_steps", "ensemble_size", "seed"):
            if isinstance(value := getattr(self, name), numbers.Integral) and not isinstance(value, bool):
                object.__setattr__(self, name, int(value))
        if self.num_inference_steps != "auto":
            check_count("num_inference_steps", self.num_inference_steps, MAX_STEPS, " or 'auto'")
        check_count("ensemble_size", self.ensemble_size, MAX_SAMPLES)
        known = (("average", AVERAGES), ("sampler", SAMPLERS), ("sampling", SAMPLINGS), ("refine", REFINEMENTS))
        for name, choices in known:
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
        if self.field_smoothness is not None and not self.field_smoothness >= 0:
            raise ValueError(f"field_smoothness is {self.field_smoothness!r}; expected a number of cells, at least 0")
        if self.refine_share is not None and not 0 < self.refine_share <= 1:
            raise ValueError(f"refine_share is {self.refine_share!r}; expected a share above 0, at most 1")
        if self.refine_threshold is not None and not self.refine_threshold >= 0:
            raise ValueError(f"refine_threshold is {self.refine_threshold!r}; expected an uncertainty of at least 0")
        if self.refine_share is not None and self.refine_threshold is not None:
            raise ValueError(
                f"refine_share is {self.refine_share!r} and refine_threshold {self.refine_threshold!r}; expected one of them"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}; expected an integer")

    def resolved(self: _Options, config: Any) -> _Options:
        """The same options with the checkpoint's values where none was chosen.

        Args:
            config: The model's `Noise2MapConfig`.

        Raises:
            ValueError: If several steps or samples are asked of a model trained without diffusion.
        """
        several_steps, several = self.num_inference_steps not in (None, 1), self.ensemble_size not in (None, 1)
        sampling = self.sampling or config.sampling
        if self.sampling is None and sampling == "one_pass" and (several_steps or several):
            sampling = "diffusion"
        if not config.diffusion:
            if (several_steps and self.num_inference_steps != "auto") or (several and sampling != "field"):
                raise ValueError(
                    "this model was trained without diffusion and makes its map in 1 step from 1 sample; got "
                    f"num_inference_steps={self.num_inference_steps!r} and ensemble_size={self.ensemble_size!r}"
                )
            sampling = "field" if sampling == "field" else "diffusion"  # a run of its only step
        if self.field_smoothness is not None and sampling != "field":
            raise ValueError(f"field_smoothness is {self.field_smoothness!r}; sampling={sampling!r} draws no field")
        refine, share, threshold = self._refinement(config)
        smoothness = self.field_smoothness
        if sampling == "field" and smoothness is None:
            smoothness = config.field_smoothness
        chosen = replace(
            self, sampling=sampling, field_smoothness=smoothness, refine=refine, refine_share=share, refine_threshold=threshold
        )
        if sampling != "diffusion" or not config.diffusion:
            denoised = sampling == "field" and config.diffusion
            if several_steps and config.diffusion and (not denoised or self.num_inference_steps == "auto"):
                expected = "1 step, or a number of them" if denoised else "1 step"
                raise ValueError(f"num_inference_steps is {self.num_inference_steps!r}; sampling={sampling!r} takes {expected}")
            if several and sampling == "one_pass":
                raise ValueError(f"ensemble_size is {self.ensemble_size!r}; sampling='one_pass' has no samples, try 'field'")
            samples = (self.ensemble_size or config.ensemble_size) if sampling == "field" else 1
            steps = (self.num_inference_steps or 1) if denoised else 1
            chosen = replace(chosen, num_inference_steps=steps, ensemble_size=samples)
        if not config.diffusion:
            return replace(chosen, average=self.average or "last", sampler=self.sampler or "ddim")
        names = ("num_inference_steps", "ensemble_size", "average", "sampler")
        return replace(chosen, **{name: getattr(config, name) for name in names if getattr(chosen, name) is None})

    def _refinement(self, config: Any) -> tuple[str, float | None, float | None]:
        """Kind, share and threshold of the refinement, of which at most one is chosen; what was asked for comes first.

        Raises:
            ValueError: If a share or threshold is given where all tokens are computed.
        """
        refine = self.refine or config.refine
        if refine == "uncertain":
            if self.refine_share is not None or self.refine_threshold is not None:
                return refine, self.refine_share, self.refine_threshold
            threshold = config.refine_threshold
            return refine, config.refine_share if threshold is None else None, threshold
        for name in ("refine_share", "refine_threshold"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)!r}; refine={refine!r} leaves none out, expected 'uncertain'")
        return refine, None, None

    @property
    def is_sparse(self) -> bool:
        """Whether steps after the first may leave tokens out; of options with every value chosen."""
        return self.refine == "uncertain" and (self.refined_share < 1 or bool(self.refine_threshold))

    @property
    def refined_share(self) -> float:
        """Share of the tokens that steps after the first compute; of options with every value chosen."""
        return self.refine_share if self.refine == "uncertain" and self.refine_share is not None else 1.0

    @property
    def name(self) -> str:
        """Name in tables, e.g. ``"3 steps x 4 samples, last, ddim"``; the seed is not."""
        count = "default" if self.num_inference_steps is None else self.num_inference_steps
        steps = f"{count} step{'s' * (count != 1)}"
        samples = "" if self.ensemble_size == 1 else f" x {self.ensemble_size or 'default'} samples"
        kind = "" if self.sampling in (None, "diffusion") else f", {self.sampling.replace('_', ' ')}"
        if self.field_smoothness is not None:
            kind += f" {self.field_smoothness:g}"
        if self.refine == "uncertain":
            kind += f", uncertain {self._refined_name}"
        return f"{steps}{samples}, {self.average or 'default average'}, {self.sampler or 'default sampler'}{kind}"

    @property
    def _refined_name(self) -> str:
        if self.refine_threshold is not None:
            return f"from {self.refine_threshold:g}"
        return "default" if self.refine_share is None else format(self.refine_share, "g")

    @property
    def dials(self) -> dict[str, Any]:
        """What a model's call is told, by keyword: all but the field's smoothness, which only `decode_map` takes, and the seed."""
        names = ("num_inference_steps", "ensemble_size", "average", "sampler", "sampling", *_REFINEMENT)
        return {name: getattr(self, name) for name in names}

    def decode(self, model: Any, features: Tensor, ids: Sequence[str], **keywords: Any) -> Any:
        """Decodes the maps of encoded images, each from the noise of ``(seed, id)``: independent of batch and order.

        Args:
            model: A `MapModel`.
            features: From the model's encoder, ``(B, C, h, w)``.
            ids: A stable name for each image.
            **keywords: Further keywords of `MapModel.decode_map`, e.g. ``output_steps``.

        Returns:
            What `MapModel.decode_map` returns.
        """
        for name in _REFINEMENT:
            if getattr(self, name) is not None:
                keywords[name] = getattr(self, name)
        if "noise" not in keywords:
            keywords["generator"] = [image_generator(self.seed, one) for one in ids]
        return model.decode_map(
            features,
            num_inference_steps=self.num_inference_steps,
            ensemble_size=self.ensemble_size,
            average=self.average,
            sampler=self.sampler,
            sampling=self.sampling,
            field_smoothness=self.field_smoothness,
            **keywords,
        )


def check_count(name: str, value: Any, most: int | None = None, extra: str = "") -> None:
    """Refuses what is no whole number from 1 to ``most``; None is let through.

    Raises:
        ValueError: Naming the number, its value and what was expected.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        expected = "an integer of at least 1" if most is None else f"an integer from 1 to {most}"
        raise ValueError(f"{name} is {value!r}; expected {expected}{extra}")


def Protocol(steps: int | str, samples: int = 1, average: str = "last", sampler: str = "ddim") -> DecodingOptions:
    """`DecodingOptions` of a run of steps with every value chosen; the name by which evaluation knew them."""
    chosen: dict[str, Any] = {"num_inference_steps": steps, "ensemble_size": samples, "average": average, "sampler": sampler}
    return DecodingOptions(sampling="diffusion", refine="all", **chosen)


Size = tuple[int, int] | str | None


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(DecodingOptions):
    """`DecodingOptions` with the size to process at.

    Attributes:
        size: ``(width, height)`` to process at, ``"native"`` for the size of each image, None for the processor's.
        interval: Probability that the truth is in what is written beside the map: an interval of depth, a cone of directions, a set
            of classes; None for no such.
    """

    size: Size = None
    interval: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling == "field" and self.num_inference_steps not in (None, 1):
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps!r}; further steps of sampling='field' denoise its samples, and "
                "a prediction is what its one call says: expected 1 (samples: decode_map(output_samples=True), noise2map evaluate)"
            )
        if self.interval is not None:
            check_level(self.interval)
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        if (
            self.size is not None
            and not isinstance(self.size, tuple)
            and not (isinstance(self.size, str) and self.size == "native")
        ):
            raise ValueError(f"size must be (width, height), 'native' or None, got {self.size!r}")
        if isinstance(self.size, tuple) and (
            len(self.size) != 2 or not all(isinstance(side, int) and side >= MIN_SIDE for side in self.size)
        ):
            raise ValueError(f"size must be two whole numbers of at least {MIN_SIDE} pixels, got {self.size!r}")


Dials = PredictionOptions
"""The name of earlier releases."""
