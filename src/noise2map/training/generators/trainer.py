"""Training of unconditional diffusion U-Nets: image generators and priors of depth maps, by one trainer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.utils import ModelOutput

from noise2map.diffusion import add_noise, image_generator, tables_from_betas
from noise2map.diffusion.process import prediction_target
from noise2map.guidance import DepthPrior
from noise2map.guidance.depth_range import DepthRange
from noise2map.runs.files import write_text
from noise2map.training.seeded_trainer import SeededTrainer

CAMERA_FILE = "camera.json"

_BANDS = 4


class UNetWithLoss(nn.Module):
    """A U-Net and the process that it learns, as a model with a training loss.

    Time steps are stratified over the batch: each is uniform, and together they cover all noise levels, which makes the loss of
    a step less noisy.

    Args:
        unet: as many output as input channels.
        scheduler: its betas and its prediction type (``epsilon``, ``v_prediction`` or ``sample``) are learnt.
        prior: the depth prior that the two parts belong to; ``save_pretrained`` then writes it, else a pipeline.
        intrinsics: ``fx, fy, cx, cy`` of the images' camera in pixels, if all have one; written beside the weights.
        channels_last: keep activations with the channels last, which convolutions on CPUs and tensor cores are faster with.

    Raises:
        ValueError: if the U-Net predicts a variance, or the prediction type is unknown.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        prior: DepthPrior | None = None,
        intrinsics: Sequence[float] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        channels = (unet.config.in_channels, unet.config.out_channels)
        if channels[0] != channels[1]:
            raise ValueError(f"the U-Net has {channels[0]} -> {channels[1]} channels; expected as many (no learnt variance)")
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type is {scheduler.config.prediction_type!r}; expected epsilon, v_prediction or sample")
        self.unet, self.scheduler, self.intrinsics, self.channels_last = unet, scheduler, intrinsics, channels_last
        self._prior = (prior,)  # in a tuple: its parameters are the U-Net's, and must not be listed twice
        self._tables = tables_from_betas(scheduler.betas)

    @property
    def prior(self) -> DepthPrior | None:
        """The depth prior that the U-Net belongs to."""
        return self._prior[0]

    @property
    def config(self) -> "_Record":
        """Configuration of the model for the run directory."""
        return _Record({"unet": dict(self.unet.config), "scheduler": dict(self.scheduler.config)})

    def forward(self, signal: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> ModelOutput:
        """The training loss at random time steps.

        Args:
            signal: clean images in [-1, 1], ``(B, C, h, w)``.
            mask: pixels that count, ``(B, 1, h, w)``; all by default.
            generator: source of time steps and noise, on the CPU.

        Returns:
            ``loss``, scalar.
        """
        count, steps = len(signal), len(self._tables.betas)
        jitter = torch.rand(count, generator=generator)
        timesteps = ((torch.arange(count) + jitter) * (steps / count)).long().clamp(max=steps - 1)
        noise = torch.randn(signal.shape, generator=generator)
        errors = self.errors(signal, timesteps, noise)
        if mask is None:
            return ModelOutput(loss=errors.mean())
        weight = mask.to(errors).expand_as(errors)
        return ModelOutput(loss=(errors * weight).sum() / weight.sum().clamp(min=1))

    def errors(self, signal: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Squared errors of the prediction at given time steps ``(B,)`` and noise ``(B, C, h, w)`` -> ``(B, C, h, w)``."""
        noise = noise.to(signal)
        alpha, sigma = (level.to(signal) for level in self._tables.alpha_sigma(timesteps))
        noisy = add_noise(signal, noise, alpha, sigma)
        target = prediction_target(signal, noise, alpha, sigma, self.scheduler.config.prediction_type)
        if self.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = self.unet(noisy, timesteps.to(signal.device)).sample
        return (predicted.float() - target.float()).square()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write what sampling loads: a folder of `DDPMPipeline`, or a `DepthPrior`."""
        package = self.prior or DDPMPipeline(self.unet, self.scheduler)
        package.save_pretrained(directory)
        if self.intrinsics is not None:
            size = self.unet.config.sample_size
            record = {"intrinsics_px": [round(float(value), 4) for value in self.intrinsics], "size_px": [size, size]}
            write_text(Path(directory) / CAMERA_FILE, json.dumps(record) + "\n")


class _Record:
    """A configuration in the form that the trainer asks for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values

    def to_json_string(self) -> str:
        return json.dumps(self.values, default=str)


class ImageCollator:
    """Raw samples with images to ``signal`` ``(B, 3, h, w)`` in [-1, 1]."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        images = np.stack([np.asarray(sample["image"].convert("RGB")) for sample in samples])
        return {"signal": torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1}


class DepthCollator:
    """Raw samples with depth to ``signal`` ``(B, 1, h, w)`` in [-1, 1] and ``mask``.

    Args:
        depth_range: as of the prior.
        missing: what pixels without depth are: ``"far"``, as far as the range goes (sky), or ``"ignore"``: filled with the map's
            mean and left out of the loss.

    Raises:
        ValueError: if ``missing`` is unknown.
    """

    def __init__(self, depth_range: DepthRange, missing: str = "far") -> None:
        if missing not in ("far", "ignore"):
            raise ValueError(f"missing is {missing!r}; expected 'far' or 'ignore'")
        self.depth_range, self.missing = depth_range, missing

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        depth, valid = (torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in ("depth_m", "valid"))
        if not self.depth_range.metric:  # what has no unit is in the files' units, up to rounding
            depth = depth.clamp(max=1)
        signal, mask = self.depth_range.encode(depth.float(), valid)
        if self.missing == "far":
            codec = self.depth_range.codec
            far = self.depth_range.encode(torch.full((1, 1, 1), codec.max_depth if codec else 1.0))[0]
            return {"signal": torch.where(mask, signal, far), "mask": torch.ones_like(mask)}
        mean = (signal * mask).sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
        return {"signal": torch.where(mask, signal, mean), "mask": mask}


class GeneratorTrainer(SeededTrainer):
    """Trains a `UNetWithLoss`; ``evaluate`` gives the loss of the averaged weights on held-out images.

    Args:
        model: what is trained.
        args: transformers' training arguments.
        train_dataset: raw samples of one size.
        eval_dataset: raw samples of that size.
        data_collator: `ImageCollator` or `DepthCollator`.
        **kwargs: of :class:`~noise2map.training.seeded_trainer.SeededTrainer` and :class:`transformers.Trainer`.
    """

    def __init__(
        self,
        model: UNetWithLoss,
        args: TrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator or ImageCollator(),
            **kwargs,
        )

    @property
    def title(self) -> str:
        """Title of the run, in a few words."""
        size = self.train_dataset.size
        return f"{'depth prior' if self.model.prior else 'generator'} at {size}x{size}"

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """``eval_loss``, and ``eval_loss_q1`` to ``q4`` for the quarters of the process, from little noise to much.

        Every sample has a time step in each quarter and noise of its own, functions of the seed and its id.
        """
        batches = self.evaluation_batches(eval_dataset, list)
        return self.score_averaged(lambda model: self._losses(model, batches), metric_key_prefix)

    @torch.no_grad()
    def _losses(self, model: nn.Module, batches: DataLoader) -> dict[str, float]:
        steps = model.scheduler.config.num_train_timesteps
        sums = torch.zeros(_BANDS, 2, dtype=torch.float64)
        for samples in batches:
            batch = self.data_collator(samples)
            signal = batch["signal"].to(self.args.device)
            generators = [image_generator(self.args.seed, str(sample["id"])) for sample in samples]
            for band in range(_BANDS):
                jitter = torch.cat([torch.rand(1, generator=generator) for generator in generators])
                timesteps = ((band + jitter) * (steps / _BANDS)).long().clamp(max=steps - 1)
                noise = torch.stack([torch.randn(signal.shape[1:], generator=generator) for generator in generators])
                errors = model.errors(signal, timesteps, noise).double().cpu()
                weight = batch.get("mask", torch.ones_like(signal[:, :1])).cpu().double().expand_as(errors)
                sums[band] += torch.stack([(errors * weight).sum(), weight.sum()])
        sums = self.accelerator.reduce(sums.to(self.args.device, torch.float32), "sum").cpu()
        means = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        return {"loss": sum(means) / _BANDS, **{f"loss_q{band + 1}": value for band, value in enumerate(means)}}
