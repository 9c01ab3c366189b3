"""A small diffusion model of depth maps, which judges whether a depth map is plausible (DAG, Sec. 3.3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from noise2map.diffusion.ensemble import draw_noise
from noise2map.diffusion.schedule import tables_from_betas
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_range import DepthRange
from noise2map.guidance.losses import GuidanceLoss, StepDepth, prior_loss

TauRule = str | int | Sequence[float] | Callable[[int, Sequence[torch.Generator]], Tensor]
"""Rule by which the prior's time steps are drawn, see `draw_tau`."""

_UNIFORM = (0.02, 0.98)


class DepthPrior(ModelMixin, ConfigMixin):
    """A `UNet2DModel` of one channel and the process that it was trained with, on depth signals in [-1, 1].

    The parts are ordinary: ``DDPMPipeline(prior.unet, prior.scheduler)`` draws depth maps.

    Args:
        unet_config: arguments of `UNet2DModel`; in_channels and out_channels are 1, sample_size is the prior's resolution.
        scheduler_config: arguments of `DDPMScheduler`; the prediction type must be ``"epsilon"``, which the loss compares.
        min_depth: nearest depth, metres, as of the predictor whose depth it judges; None for relative depth.
        max_depth: farthest depth, metres.
        depth_representation: ``"log"`` or ``"linear"``, of metric depth.
    """

    @register_to_config
    def __init__(
        self,
        unet_config: Mapping[str, Any],
        scheduler_config: Mapping[str, Any] | None = None,
        min_depth: float | None = None,
        max_depth: float | None = None,
        depth_representation: str = "log",
    ) -> None:
        """Builds the U-Net.

        Raises:
            ValueError: if the U-Net has no sample_size or not one channel, or the prediction type is not ``"epsilon"``.
        """
        super().__init__()
        self.unet = UNet2DModel(**{"in_channels": 1, "out_channels": 1, **_public(unet_config)})
        self.scheduler = DDPMScheduler(**_public(scheduler_config or {}))
        config = self.unet.config
        if (config.in_channels, config.out_channels) != (1, 1):
            raise ValueError(f"the prior's U-Net has {config.in_channels} -> {config.out_channels} channels; expected 1 -> 1")
        if config.sample_size is None:
            raise ValueError("the prior's U-Net has no sample_size; expected its resolution in px")
        if self.scheduler.config.prediction_type != "epsilon":
            raise ValueError(f"the prior predicts {self.scheduler.config.prediction_type!r}; expected 'epsilon'")
        self.depth_range = DepthRange(min_depth, max_depth, depth_representation)
        self._tables = tables_from_betas(self.scheduler.betas)

    @classmethod
    def small(cls, sample_size: int = 64, widths: Sequence[int] = (32, 64, 96, 128), **config: Any) -> "DepthPrior":
        """A prior that is cheap beside the image U-Net: attention at the two coarsest levels, one residual block for each level.

        Args:
            sample_size: resolution in px (the paper compares 64, 128 and 256, and finds 128 best).
            widths: channels of each level.
            **config: the depth range.
        """
        levels = len(widths)
        attends = [level >= levels - 2 for level in range(levels)]
        unet_config = {
            "sample_size": sample_size,
            "block_out_channels": list(widths),
            "layers_per_block": 1,
            "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attends],
            "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)],
            "attention_head_dim": 32,
            "norm_num_groups": 32,
        }
        return cls(unet_config=unet_config, **config)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the prior's depth maps in px."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def num_train_timesteps(self) -> int:
        """Number of time steps of the prior's process."""
        return int(self.scheduler.config.num_train_timesteps)

    def check_predictor(self, predictor: DepthPredictor) -> None:
        """Refuses a predictor whose depth this prior cannot judge.

        Raises:
            ValueError: if its range of depth is another, or its images have other proportions.
        """
        if predictor.depth_range != self.depth_range:
            raise ValueError(
                f"the depth predictor gives {predictor.depth_range}, but the depth prior was trained on {self.depth_range}; "
                "expected the same range"
            )
        (height, width), (own_height, own_width) = predictor.image_size, self.image_size
        if height * own_width != width * own_height:
            raise ValueError(
                f"images have {height}x{width} px and the depth prior {own_height}x{own_width}: expected the same proportions"
            )

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Noise in noisy depth ``(B, 1, h, w)`` at integer time steps ``(B,)`` -> ``(B, 1, h, w)``."""
        return self.unet(noisy, timesteps).sample

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level ``(B,)`` of integer time steps ``(B,)``, in the type and on the device of the weights."""
        alpha, sigma = self._tables.alpha_sigma(timesteps.cpu())
        reference = self.unet.conv_in.weight
        return alpha.to(reference), sigma.to(reference)

    def resize(self, signal: Tensor) -> Tensor:
        """Depth signal ``(B, 1, h, w)`` -> the prior's resolution, bilinear, averaged when it shrinks.

        Raises:
            ValueError: if the shape of the map is another (a square prior cannot judge a panorama).
        """
        height, width = self.image_size
        if signal.shape[-2] * width != signal.shape[-1] * height:
            raise ValueError(
                f"depth has {signal.shape[-2]}x{signal.shape[-1]} px and the prior {height}x{width}: expected the same proportions"
            )
        if signal.shape[-2:] == (height, width):
            return signal
        # In float32: CPUs have no averaging resize of half precision.
        exact = signal.to(torch.promote_types(signal.dtype, torch.float32))
        resized = functional.interpolate(exact, (height, width), mode="bilinear", align_corners=False, antialias=True)
        return resized.to(signal.dtype)

    def loss(self, signal: Tensor, timesteps: Tensor, noise: Tensor, reduction: str = "sum") -> Tensor:
        """`prior_loss` of depth signals ``(B, 1, h, w)`` of any resolution -> ``(B,)``.

        Args:
            signal: depth signal in [-1, 1].
            timesteps: ``tau``, ``(B,)``.
            noise: standard normal, ``(B, 1, *image_size)``.
            reduction: over pixels, ``"sum"`` or ``"mean"``.
        """
        reference = self.unet.conv_in.weight
        tau = timesteps.to(reference.device)
        alpha, sigma = self.levels(timesteps)
        return prior_loss(self.resize(signal).to(reference), self, tau, alpha, sigma, noise.to(reference), reduction)

    def training_loss(self, signal: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Loss of a training step, scalar: mean over pixels and images, time steps drawn uniformly.

        Args:
            signal: depth signals in [-1, 1], ``(B, 1, h, w)``.
            generator: source of time steps and noise; on the CPU.
        """
        count = signal.shape[0]
        tau = torch.randint(0, self.num_train_timesteps, (count,), generator=generator)
        noise = torch.randn((count, 1, *self.image_size), generator=generator)
        return self.loss(signal, tau, noise, "mean").mean()


def draw_tau(rule: TauRule, timestep: int, image_steps: int, prior_steps: int, generators: Sequence[torch.Generator]) -> Tensor:
    """The prior's time step for each image, ``(B,)`` int64.

    Args:
        rule: ``"uniform"`` (2 % to 98 % of the prior's steps), ``"matched"`` (as far along as the image), a pair of fractions
            (uniform between them), one time step, or a function ``(image time step, generators) -> (B,)``.
        timestep: the image's time step.
        image_steps: number of time steps of the image's process.
        prior_steps: number of time steps of the prior's process.
        generators: one for each image.

    Raises:
        ValueError: if the rule is unknown or leads outside of the prior's steps.
    """
    count = len(generators)
    if callable(rule):
        tau = torch.as_tensor(rule(timestep, generators))
    elif rule == "matched":
        tau = torch.full((count,), timestep * prior_steps // image_steps)
    elif isinstance(rule, int) and not isinstance(rule, bool):
        tau = torch.full((count,), rule)
    else:
        low, high = check_tau_rule(rule)
        first, last = int(low * prior_steps), max(int(high * prior_steps), int(low * prior_steps) + 1)
        tau = torch.stack([torch.randint(first, min(last, prior_steps), (), generator=generator) for generator in generators])
    if tau.shape != (count,) or tau.dtype != torch.int64 or bool(((tau < 0) | (tau >= prior_steps)).any()):
        raise ValueError(f"the prior's time steps are {tau.tolist()}; expected {count} whole numbers in 0..{prior_steps - 1}")
    return tau


def check_tau_rule(rule: TauRule) -> tuple[float, float]:
    """Fractions of the prior's steps of a uniform rule; (0, 1) for a rule of another kind.

    Raises:
        ValueError: if the rule is unknown.
    """
    if callable(rule) or rule == "matched" or (isinstance(rule, int) and not isinstance(rule, bool) and rule >= 0):
        return 0.0, 1.0
    if rule == "uniform":
        return _UNIFORM
    if isinstance(rule, (tuple, list)) and len(rule) == 2 and 0 <= rule[0] < rule[1] <= 1:
        return float(rule[0]), float(rule[1])
    raise ValueError(
        f"prior_timesteps is {rule!r}; expected 'uniform', 'matched', fractions (low, high) within 0..1, a time step or a function"
    )


def draw_prior_noise(prior: DepthPrior, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise ``eta`` at the prior's resolution, ``(B, 1, h, w)``, one generator for each image."""
    return draw_noise((1, *prior.image_size), generators)


@dataclass(frozen=True)
class PriorLoss(GuidanceLoss):
    """Depth prior: how surprising a diffusion model of depth maps finds the strong branch's reading, see `prior_loss`.

    Attributes:
        timesteps: how the prior's time steps are drawn, see `draw_tau`.
        prior: the prior; None for the pipeline's.
    """

    name: ClassVar[str] = "prior"

    timesteps: TauRule = "uniform"
    prior: DepthPrior | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value that is impossible.
        """
        super().__post_init__()
        check_tau_rule(self.timesteps)

    def blocks_needed(self, strong: tuple[int, ...], weak: tuple[int, ...]) -> Sequence[int]:
        """Those of the strong branch."""
        return strong

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The prior."""
        return () if self.prior is None else (self.prior,)

    def bound(self, pipe_parts: Mapping[str, Any]) -> "PriorLoss":
        """The loss with the pipeline's prior, if it has none of its own.

        Raises:
            ValueError: if neither has one, or it cannot judge the depth of the pipeline's predictor or has fewer time steps.
        """
        prior, predictor = self.prior or pipe_parts.get("depth_prior"), pipe_parts.get("depth_predictor")
        if prior is None:
            raise ValueError(f"prior_scale is {self.scale}, but the pipeline has no depth_prior; pass one, or prior_scale=0")
        if predictor is not None:
            prior.check_predictor(predictor)
        if isinstance(self.timesteps, int) and self.timesteps >= prior.num_train_timesteps:
            raise ValueError(f"prior_timesteps is {self.timesteps}; expected a time step of 0..{prior.num_train_timesteps - 1}")
        return replace(self, prior=prior)

    def __call__(self, features: Mapping[int, Tensor], depth: StepDepth, generators: Sequence[torch.Generator]) -> Tensor:
        """`prior_loss` of the strong branch's depth at time steps and with noise of its own, ``(B,)``."""
        if self.prior is None:
            raise ValueError("the prior loss has no prior; pass one, or use it in a pipeline that has one")
        tau = draw_tau(self.timesteps, depth.timestep, depth.image_steps, self.prior.num_train_timesteps, generators)
        return self.prior.loss(depth.strong, tau, draw_prior_noise(self.prior, generators), self.reduction or "sum")


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the private fields that saving adds."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
