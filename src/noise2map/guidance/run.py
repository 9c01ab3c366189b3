"""The plan of a sampling run: how many images and steps, and which steps are guided."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.randomness import Generator
from noise2map.guidance.steps import CONVENTIONS, Scheduler


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
