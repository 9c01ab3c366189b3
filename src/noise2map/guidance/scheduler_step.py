"""One step of a diffusers scheduler, moved by a guidance gradient.

Guidance is linear in the step, so the scheduler does its step and the shift is added: with a gradient of zero the result is
the scheduler's own, bit for bit, and noise is drawn the same with and without guidance. Two conventions say what a scale means:

- ``"plain"``: the gradient is subtracted from the mean of ``x_{t-1}`` as it is, as DAG prints it;
- ``"variance"``: classifier guidance (Dhariwal & Nichol 2021). Ancestral steps multiply the gradient by the step's variance
  (Alg. 1, ADM's ``condition_mean``); DDIM steps shift the predicted noise by ``sqrt(1 - alpha_bar) * gradient`` (Alg. 2,
  ``condition_score``).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from noise2map.diffusion.schedule import tables_from_betas

CONVENTIONS = ("plain", "variance")

_LEARNED = ("learned", "learned_range")

_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", *_LEARNED)

_MIN_LEVEL = 1e-8

Scheduler = DDPMScheduler | DDIMScheduler


@dataclass
class GuidedStep:
    """Result of a step.

    Attributes:
        prev_sample: ``x_{t-1}``, ``(B, C, H, W)``.
        pred_original_sample: the clean image that the step believes in, ``(B, C, H, W)``.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


def check_scheduler(scheduler: object, in_channels: int, out_channels: int) -> None:
    """Refuses what cannot be guided.

    Raises:
        ValueError: if the scheduler is neither DDPM nor DDIM, or its variance does not fit the channels of the U-Net.
    """
    if not isinstance(scheduler, (DDPMScheduler, DDIMScheduler)):
        raise ValueError(f"the scheduler is a {type(scheduler).__name__}; expected a DDPMScheduler or a DDIMScheduler")
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"the U-Net has {in_channels} -> {out_channels} channels; expected as many, or twice as many with a variance"
        )
    if isinstance(scheduler, DDIMScheduler):
        return
    variance = scheduler.config.variance_type
    if variance not in _VARIANCES:
        raise ValueError(f"the scheduler's variance_type is {variance!r}; expected one of {', '.join(_VARIANCES)}")
    if variance in _LEARNED and out_channels == in_channels:
        raise ValueError(
            f"the scheduler's variance_type is {variance!r}, but the U-Net predicts no variance ({out_channels} channels)"
        )


def check_sampling(scheduler: Scheduler, batch_size: int, num_inference_steps: int, eta: float, generator: object) -> None:
    """Refuses impossible numbers of a run.

    Raises:
        ValueError: naming the number and what was expected.
    """
    check_integer("batch_size", batch_size, 1, None)
    check_integer("num_inference_steps", num_inference_steps, 1, scheduler.config.num_train_timesteps)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; expected a number in [0, 1]")
    if eta and isinstance(scheduler, DDPMScheduler):
        raise ValueError(f"eta is {eta}, but the scheduler is a DDPMScheduler; eta belongs to DDIMScheduler")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for {batch_size} images; expected one each")
    several = isinstance(generator, list) and all(isinstance(one, torch.Generator) for one in generator)
    if generator is not None and not several and not isinstance(generator, torch.Generator):
        kinds = ", ".join(sorted({type(one).__name__ for one in generator})) if isinstance(generator, list) else ""
        given = f"{type(generator).__name__}{kinds and f' of {kinds}'}"
        raise ValueError(f"generator is a {given}; expected a torch.Generator or a list of them")


def check_integer(name: str, value: object, low: int, high: int | None) -> None:
    """Refuses what is not a whole number in a range.

    Raises:
        ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(
            f"{name} is {value!r}; expected a whole number, {f'{low} to {high}' if high is not None else f'at least {low}'}"
        )


def guided_step(
    scheduler: Scheduler,
    model_output: Tensor,
    timestep: Tensor | int,
    x_t: Tensor,
    gradient: Tensor | None,
    *,
    convention: str = "variance",
    eta: float = 0.0,
    use_clipped_model_output: bool | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> GuidedStep:
    """A step of the scheduler from ``x_t``, against the gradient of the (scaled) losses.

    Args:
        scheduler: DDPM or DDIM, with its time steps set.
        model_output: the U-Net's output ``(B, C or 2C, H, W)``; a second half is the variance, which DDIM and fixed variances
            ignore.
        timestep: the time step.
        x_t: ``(B, C, H, W)``.
        gradient: ``(B, C, H, W)``, or None for the scheduler's own step.
        convention: ``"variance"`` or ``"plain"``, see the module.
        eta: noise of a DDIM step, 0 to 1.
        use_clipped_model_output: DDIM: derive the noise again from the clipped clean image. True is ADM's sampler; None and
            False are diffusers'.
        generator: source of the step's noise.
    """
    t, channels = int(timestep), x_t.shape[1]
    learned = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in _LEARNED
    output = model_output if learned else model_output[:, :channels]
    if isinstance(scheduler, DDIMScheduler):
        clipped = {} if use_clipped_model_output is None else {"use_clipped_model_output": use_clipped_model_output}
        with _stepping_to(scheduler, t, ddim_previous(scheduler, t)):
            result = scheduler.step(output, timestep, x_t, eta=eta, generator=generator, **clipped)
    else:
        result = scheduler.step(output, timestep, x_t, generator=generator)
    previous, clean = result.prev_sample, result.pred_original_sample
    if gradient is None:
        return GuidedStep(previous, clean)
    if convention == "plain":
        return GuidedStep((previous - gradient).to(previous.dtype), clean)
    if isinstance(scheduler, DDPMScheduler):
        variance = ddpm_variance(scheduler, t, output[:, channels:] if learned else None)
        return GuidedStep((previous - variance * gradient).to(previous.dtype), clean)
    to_previous, to_clean = ddim_shift(scheduler, t, eta)
    return GuidedStep((previous + to_previous * gradient).to(previous.dtype), (clean + to_clean * gradient).to(clean.dtype))


def set_timesteps(scheduler: Scheduler, num_inference_steps: int) -> None:
    """Set the time steps of a run, as many as are asked for and none before the first of training.

    With `trailing` spacing diffusers adds a step at -1 to some runs (61, 103, 121, 201 and 58 other numbers up to 1,000), where
    rounding lets its range end late: its noise level is that of the noisiest step, and the finished image is noise again.

    Args:
        scheduler: changed in place.
        num_inference_steps: How many steps.
    """
    scheduler.set_timesteps(num_inference_steps)
    scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]


def ddpm_variance(scheduler: DDPMScheduler, timestep: int, predicted: Tensor | None = None) -> Tensor | float:
    """Variance of an ancestral step on the scheduler's own grid of time steps, as ADM has it.

    The last step's posterior variance is zero; ADM puts that of the step before in its place, and so do we: diffusers' 1e-20
    would make a learnt variance meaningless there. A run of one step has none before and is not moved.

    Args:
        scheduler: with its time steps set.
        timestep: the time step.
        predicted: the second half of the U-Net's output, ``(B, C, H, W)``, for learnt variances.

    Returns:
        A number, or ``(B, C, H, W)`` for learnt variances.
    """
    kind = scheduler.config.variance_type
    if kind == "learned":
        assert predicted is not None
        return predicted
    previous = int(scheduler.previous_timestep(timestep))
    beta, posterior = _step_variances(scheduler, timestep, previous)
    if previous < 0:
        grid = sorted(int(step) for step in scheduler.timesteps)
        if len(grid) < 2:
            return 0.0
        posterior = _step_variances(scheduler, grid[1], grid[0])[1]
    if kind == "learned_range":
        assert predicted is not None
        fraction = (predicted.to(torch.promote_types(predicted.dtype, torch.float32)) + 1) / 2
        return (fraction * math.log(beta) + (1 - fraction) * math.log(posterior)).exp()
    return beta if kind == "fixed_large" and previous >= 0 else posterior


def diffusers_steps_fit(scheduler: Scheduler, num_inference_steps: int) -> bool:
    """Whether the steps of diffusers lead along the time steps of a run; `ddim_previous` takes their place where they do not.

    DDPM's do, and those of DDIM with `leading` spacing or where the number of steps divides that of training. With `linspace` the
    latter fit only nearly, and are left as they are in diffusers: with fewer than about fifteen steps images keep some noise.
    """
    config = scheduler.config
    leading = config.timestep_spacing == "leading"
    return isinstance(scheduler, DDPMScheduler) or leading or config.num_train_timesteps % num_inference_steps == 0


def ddim_previous(scheduler: DDIMScheduler, timestep: int) -> int:
    """The time step at which a DDIM step ends: the next one of the run, below 0 for the clean image after the last.

    diffusers goes ``T // n`` back, which is right where `diffusers_steps_fit`. Elsewhere the steps of a run are up to twice as
    far apart, and each step of diffusers leaves noise in the image that the next one does not expect: images of 60 or 300 of
    1,000 steps come out grainy.

    Args:
        scheduler: with its time steps set.
        timestep: the time step at which it begins.
    """
    total = scheduler.config.num_train_timesteps
    count = scheduler.num_inference_steps or total  # without any, the scheduler itself says what is missing
    if diffusers_steps_fit(scheduler, count):
        return timestep - total // count
    return max((step for step in scheduler.timesteps.tolist() if step < timestep), default=min(timestep, 0) - 1)


def ddim_shift(scheduler: DDIMScheduler, timestep: int, eta: float) -> tuple[float, float]:
    """Shift of ``x_{t-1}`` and of the clean image of a DDIM step by a unit gradient.

    ``eps' = eps + sqrt(1 - a) g`` moves the clean image by ``-(1 - a) / sqrt(a) g`` (it is not clipped again), and ``x_{t-1}``
    by both.
    """
    previous = ddim_previous(scheduler, timestep)
    levels = _levels(scheduler)
    level = max(levels[timestep], _MIN_LEVEL)
    level_previous = levels[previous] if previous >= 0 else float(scheduler.final_alpha_cumprod)
    noise = eta**2 * (1 - level_previous) / (1 - level) * (1 - level / level_previous)
    to_clean = -(1 - level) / math.sqrt(level)
    direction = math.sqrt(max(1 - level_previous - noise, 0.0))
    return math.sqrt(level_previous) * to_clean + direction * math.sqrt(1 - level), to_clean


@contextmanager
def _stepping_to(scheduler: DDIMScheduler, timestep: int, previous: int) -> Iterator[None]:
    """Let ``scheduler.step`` end at a time step of our choice: it takes that to be ``timestep - T // num_inference_steps``."""
    total, count = scheduler.config.num_train_timesteps, scheduler.num_inference_steps
    if count and timestep - total // count != previous:
        scheduler.num_inference_steps = Fraction(total, timestep - previous)  # divides T exactly, where a float might not
    try:
        yield
    finally:
        scheduler.num_inference_steps = count


def _step_variances(scheduler: DDPMScheduler, timestep: int, previous: int) -> tuple[float, float]:
    """``beta`` and posterior variance of the step from one time step to another of the respaced chain."""
    levels = _levels(scheduler)
    level, level_previous = levels[timestep], levels[previous] if previous >= 0 else 1.0
    beta = 1 - level / level_previous
    return beta, (1 - level_previous) / (1 - level) * beta


def _levels(scheduler: Scheduler) -> list[float]:
    # In float64 from the betas: the scheduler's own float32 products lose the small variances of the first time steps.
    return tables_from_betas(scheduler.betas).alphas_cumprod.tolist()
