"""Runs that differ in one thing each, and the control that has as many decoder calls without steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion import image_generator
from noise2map.diffusion.ensemble import draw_noise, fold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.sampling import ddim_steps
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising import Denoiser, time_grid

VARIANTS = ("run", "zero start noise", "frozen time", "fresh noise", "fresh noise, steps averaged", "first calls averaged")


@dataclass(frozen=True, kw_only=True)
class RunVariant(DecodingOptions):
    """A run with one thing changed.

    - `run`: as the model's configuration says.
    - `zero start noise`: the run starts from zeros.
    - `frozen time`: every call is told ``t = 1``, while the noisy map moves on.
    - `fresh noise`: between steps the predicted map is corrupted with new noise (DDIM), so that nothing of the noise is carried on.
    - `fresh noise, steps averaged`: likewise, and the mean of all steps.
    - `first calls averaged`: as many calls at ``t = 1``, each from noise of its own: the control. What a run gains over it, its
      steps have brought.

    Attributes:
        variant: One of these.
    """

    variant: str = "run"

    @property
    def name(self) -> str:
        """E.g. ``"10 calls: fresh noise"``."""
        calls = self.ensemble_size if self.variant == "first calls averaged" else self.num_inference_steps
        return f"{calls} call{'s' * (calls != 1)}: {self.variant}"

    def decode(self, model: Any, features: Tensor, ids: Sequence[str], **keywords: Any) -> Any:
        """See `DecodingOptions.decode`."""
        if self.variant in ("run", "first calls averaged"):
            return super().decode(model, features, ids, **keywords)
        shape = (len(ids), 1, model.codec.channels, *features.shape[-2:])
        if self.variant == "zero start noise":
            # generators are still needed where further noise is drawn
            generators = [image_generator(self.seed, one) for one in ids]
            return super().decode(model, features, ids, noise=torch.zeros(shape), generator=generators, **keywords)
        return self._own_run(model, features, ids, shape[1:])

    def _own_run(self, model: Any, features: Tensor, ids: Sequence[str], shape: tuple[int, ...]) -> Any:
        generators = [image_generator(self.seed, one) for one in ids]
        pairs = time_grid(model, replace(self, sampling="diffusion"))
        x_T = fold(draw_noise(shape, generators, features.device))
        told = [(1.0, after) for _, after in pairs] if self.variant == "frozen time" else pairs
        active = torch.ones(len(ids), dtype=torch.bool)
        channels, size = model.config.noise_channels, (features.shape[-2], features.shape[-1])
        latent = (lambda _: fold(multi_resolution_noise(channels, 1, size, generators, x_T.device))) if channels else None
        average = "steps" if self.variant.endswith("averaged") else "last"
        aggregator = model.make_aggregator(len(ids), 1, average)
        churn = 0.0 if self.variant == "frozen time" else 1.0
        fresh = lambda index, x: fold(draw_noise(shape, generators, x.device)).to(x.dtype)  # noqa: E731
        for step in ddim_steps(Denoiser(model, features, told, 1, active, latent), x_T, model.schedule, pairs, churn, fresh):
            aggregator.update(step.prediction, active)
        prediction, kinds = aggregator.result()
        if (calibration := model.calibration) is not None:  # as of every other variant
            prediction, kinds = model.calibrate(prediction, kinds, calibration, average == "steps")
        fields = {"uncertainties": kinds, "num_steps": aggregator.num_steps, "calibration": calibration}
        return model.make_output(prediction, log_probabilities=average == "steps", **fields)


def run_variants(config: Any, counts: Sequence[int], seed: int = 0) -> Iterator[RunVariant]:
    """One call, and every variant for each number of calls; one call alone for a model without diffusion.

    Args:
        config: The model's.
        counts: Numbers of decoder calls.
        seed: With an image's id it fixes its noise.
    """
    shared = {"average": "last", "sampler": config.sampler, "sampling": "diffusion", "seed": seed}
    yield RunVariant(num_inference_steps=1, ensemble_size=1, **shared)
    for count in (count for count in counts if count > 1 and config.diffusion):
        for variant in VARIANTS:
            several = variant == "first calls averaged"
            calls = {"num_inference_steps": 1 if several else count, "ensemble_size": count if several else 1}
            yield RunVariant(variant=variant, **calls, **shared)
