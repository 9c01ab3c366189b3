"""The plan of a sampling run: how many images and steps, and which steps are guided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from noise2map.diffusion.ensemble import Generator
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import TauRule, check_tau_rule
from noise2map.guidance.losses import REDUCTIONS
from noise2map.guidance.scheduler_step import CONVENTIONS, Scheduler


@dataclass(frozen=True)
class SamplingRun:
    """Numbers of a run; `check` refuses impossible ones.

    Attributes:
        batch_size: number of images.
        num_inference_steps: number of steps.
        convention: meaning of the scales, ``"plain"`` or ``"variance"``.
        guidance_start: first guided step.
        guidance_end: step before which guidance ends; None for all.
        guidance_every: guide every so many steps, from the first.
        guidance_timesteps: half-open range of guided time steps; None for the predictor's useful range.
        eta: noise of DDIM steps.
        use_clipped_model_output: whether DDIM derives the noise again from the clipped clean image.
    """

    batch_size: int
    num_inference_steps: int
    convention: str = "variance"
    guidance_start: int = 0
    guidance_end: int | None = None
    guidance_every: int = 1
    guidance_timesteps: tuple[int, int] | None = None
    eta: float = 0.0
    use_clipped_model_output: bool | None = None

    def guides(self, index: int, timestep: int, predictor: DepthPredictor) -> bool:
        """Whether the step of this index, at this time step, is guided."""
        end = self.num_inference_steps if self.guidance_end is None else self.guidance_end
        low, high = self.guidance_timesteps or predictor.config.useful_timesteps
        in_turn = self.guidance_start <= index < end and (index - self.guidance_start) % self.guidance_every == 0
        return in_turn and low <= timestep < high

    def check(self, scheduler: Scheduler, generator: Generator) -> None:
        """Refuses impossible numbers.

        Raises:
            ValueError: naming the number and what was expected.
        """
        train_steps = scheduler.config.num_train_timesteps
        for name, low, high in (("batch_size", 1, None), ("num_inference_steps", 1, train_steps), ("guidance_every", 1, None)):
            _check_integer(name, getattr(self, name), low, high)
        _check_integer("guidance_start", self.guidance_start, 0, None)
        if self.guidance_end is not None:
            _check_integer("guidance_end", self.guidance_end, self.guidance_start, None)
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention is {self.convention!r}; expected 'plain' or 'variance'")
        span = self.guidance_timesteps
        if span is not None and (len(span) != 2 or not 0 <= span[0] < span[1]):
            raise ValueError(f"guidance_timesteps is {span}; expected (first, end) with 0 <= first < end")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; expected a number in [0, 1]")
        if self.eta and isinstance(scheduler, DDPMScheduler):
            raise ValueError(f"eta is {self.eta}, but the scheduler is a DDPMScheduler; eta belongs to DDIMScheduler")
        if isinstance(generator, (list, tuple)) and len(generator) != self.batch_size:
            raise ValueError(f"got {len(generator)} generators for {self.batch_size} images; expected one each")
        if generator is not None and not isinstance(generator, (list, tuple, torch.Generator)):
            raise ValueError(f"generator is a {type(generator).__name__}; expected a torch.Generator or a list of them")


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(
            f"{name} is {value!r}; expected a whole number, {f'{low} to {high}' if high is not None else f'at least {low}'}"
        )


NONFINITE = ("error", "skip")


@dataclass(frozen=True)
class GuidanceLosses:
    """Which losses guide, and how strongly.

    Attributes:
        consistency_scale: weight of the depth consistency loss.
        prior_scale: weight of the depth prior loss.
        reduction: of the squared differences over pixels, ``"sum"`` (as the paper prints them) or ``"mean"``.
        strong_blocks: the predictor's branch taken as strong, by its blocks; None for its own.
        weak_blocks: the branch taken as weak; None for its own.
        prior_timesteps: how the prior's time steps are drawn, see `draw_tau`.
        on_nonfinite: ``"error"``, or ``"skip"`` to leave an image unguided in a step whose gradient is not finite.
    """

    consistency_scale: float = 0.0
    prior_scale: float = 0.0
    reduction: str = "sum"
    strong_blocks: Sequence[int] | None = None
    weak_blocks: Sequence[int] | None = None
    prior_timesteps: TauRule = "uniform"
    on_nonfinite: str = "error"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value that is impossible.
        """
        for name in ("consistency_scale", "prior_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; expected a finite number, at least 0")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {self.reduction!r}; expected 'sum' or 'mean'")
        if self.on_nonfinite not in NONFINITE:
            raise ValueError(f"on_nonfinite is {self.on_nonfinite!r}; expected 'error' or 'skip'")
        check_tau_rule(self.prior_timesteps)

    @property
    def active(self) -> bool:
        """Whether anything guides."""
        return self.consistency_scale > 0 or self.prior_scale > 0
