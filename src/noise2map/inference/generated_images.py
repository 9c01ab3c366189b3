"""Draws images of a generator by seed, and reads the depth of any image from its features."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from noise2map.diffusion import add_noise, image_generator, tables_from_betas
from noise2map.guidance import DepthGuidedPipeline, DepthPrior, UNetFeatureTap, unet_signature
from noise2map.inference.generators import OWN
from noise2map.inference.records import OutputFolder
from noise2map.report.files import encode_image


@dataclass(frozen=True)
class GuidanceSetting:
    """A way to draw images.

    Attributes:
        name: In tables.
        consistency_scale: Weight of depth consistency guidance.
        prior_scale: Weight of depth prior guidance.
        prior: Which of the priors, by name; "" for the pipeline's own.
    """

    name: str
    consistency_scale: float = 0.0
    prior_scale: float = 0.0
    prior: str = ""

    @property
    def key(self) -> str:
        """Name of its folder: equal scales and prior, equal images."""
        prior = f"_{self.prior}" if self.prior and self.prior_scale else ""
        return f"c{self.consistency_scale:g}_p{self.prior_scale:g}{prior}"


@dataclass(frozen=True)
class SamplingPlan:
    """What all settings share, beside the seeds.

    Attributes:
        num_inference_steps: Steps.
        convention: Meaning of the scales, `"variance"` or `"plain"`; `"own"` for the pipeline's, see `of`.
        reduction: Of the losses over pixels, `"sum"` or `"mean"`, or `"own"`.
        guidance_every: Guide every so many steps.
        eta: Noise of DDIM steps.
        on_nonfinite: `"error"` or `"skip"`.
        bf16: Draw under bfloat16 autocast, which CPUs with AMX and GPUs are much faster with; what reads the images later is not.
    """

    num_inference_steps: int = 50
    convention: str = OWN
    reduction: str = OWN
    guidance_every: int = 1
    eta: float = 0.0
    on_nonfinite: str = "error"
    bf16: bool = False

    def of(self, pipe: DepthGuidedPipeline) -> "SamplingPlan":
        """The plan with the pipeline's own convention and reduction where it says `"own"`."""
        own = {name: pipe.config[name] for name in ("convention", "reduction") if getattr(self, name) == OWN}
        return replace(self, **own)

    def arguments(self) -> dict[str, Any]:
        """Of a call of the pipeline."""
        return {name: value for name, value in asdict(self).items() if name != "bf16"}


def draw_images(
    pipe: DepthGuidedPipeline,
    setting: GuidanceSetting,
    seeds: Sequence[int],
    out: Path,
    plan: SamplingPlan,
    *,
    batch_size: int = 8,
    generator_name: str = "",
    on_images: Callable[[int], object] = lambda count: None,
) -> OutputFolder:
    """Draw the images of some seeds that are not there yet; an image follows from its seed and the setting alone.

    Args:
        pipe: The generator, with the prior of the setting.
        setting: Scales.
        seeds: Of the images.
        out: Folder of all settings. `out/KEY_DIGITS` gets the images, `SEED.png`; the digits stand for all that decides an image.
        plan: What all settings share.
        batch_size: Images at a time.
        generator_name: Recorded.
        on_images: Called with the number of images done.

    Returns:
        The folder; its `done` tells seconds for each image.

    Raises:
        OSError: If something cannot be written.
        ValueError: If a gradient is not finite.
    """
    plan = plan.of(pipe)
    settings = {"generator": generator_name, **_what_decides(pipe, setting, plan)}
    digits = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    folder = OutputFolder(out / f"{setting.key}_{digits}", settings)
    missing = [seed for seed in seeds if not folder.is_done(str(seed), {})]
    on_images(len(seeds) - len(missing))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        began = perf_counter()
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=plan.bf16):
            result = pipe(
                batch_size=len(part),
                generator=[torch.Generator(pipe.device).manual_seed(seed) for seed in part],
                consistency_scale=setting.consistency_scale,
                prior_scale=setting.prior_scale,
                output_type="pt",
                **plan.arguments(),
            )
        pixels = (result.images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        seconds = (perf_counter() - began) / len(part)
        skipped = result.skipped.tolist() if result.skipped is not None else [0] * len(part)
        for seed, picture, count in zip(part, pixels, skipped):
            name = f"{seed:06d}.png"
            line = {"id": str(seed), "source": {}, "files": {"image": name}, "seconds": seconds, "skipped_steps": count}
            folder.write(line, {name: encode_image(Image.fromarray(picture))})
        on_images(len(part))
    folder.close()
    return folder


def _what_decides(pipe: DepthGuidedPipeline, setting: GuidanceSetting, plan: SamplingPlan) -> dict[str, Any]:
    """All that an image depends on beside its seed; of guidance only where there is any."""
    found: dict[str, Any] = {
        "signature": _signature_of(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "num_inference_steps": plan.num_inference_steps,
        "eta": plan.eta,
    }
    if setting.consistency_scale or setting.prior_scale:
        found |= {"setting": setting.key, "predictor": _digits(pipe.depth_predictor), **plan.arguments()}
    if setting.prior_scale:
        found["prior"] = _digits(pipe.depth_prior)
    if plan.bf16:
        found["bf16"] = True
    return found


def prior_name(prior: DepthPrior | None) -> str:
    """A depth prior by resolution and weights, empty for none: what a setting calls it."""
    return "" if prior is None else f"{prior.image_size[0]}px-{_digits(prior)[:4]}"


def _digits(module: Any) -> str:
    from noise2map.runs.files import weights_checksum

    return weights_checksum(module)


def _signature_of(pipe: DepthGuidedPipeline) -> str:
    return " ".join(f"{value:.4g}" for value in unet_signature(pipe.unet)[::8])


def depth_probe(
    pipe: DepthGuidedPipeline, timestep: int = 50, seed: int = 0
) -> Callable[[Tensor, Sequence[str]], tuple[Tensor, Tensor]]:
    """What reads the depth of finished or real images from the generator's features: strong and weak signal.

    An image is noised to one time step, with noise that follows from its id, and goes through the U-Net once.

    Args:
        pipe: The generator with its predictor.
        timestep: How noisy.
        seed: Of the noise.

    Returns:
        A function of images `(B, 3, H, W)` uint8 and ids that gives two signals `(B, 1, h, w)`, nominally in [-1, 1].

    Raises:
        ValueError: If there is no predictor, or the time step is not one of its useful ones.
    """
    predictor = pipe.depth_predictor
    if predictor is None:
        raise ValueError("reading depth from features needs a depth predictor")
    low, high = predictor.config.useful_timesteps
    if not low <= timestep < high:
        raise ValueError(f"timestep is {timestep}; expected one in which the features carry depth, {low} to {high - 1}")
    alpha, sigma = tables_from_betas(pipe.scheduler.betas).alpha_sigma(torch.tensor(timestep))

    @torch.no_grad()
    def probe(images: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        signal = images.to(pipe.device).float() / 127.5 - 1
        noise = torch.stack([torch.randn(signal.shape[1:], generator=image_generator(seed, one)) for one in ids])
        noisy = add_noise(signal, noise.to(signal), alpha.to(signal), sigma.to(signal)).to(pipe.unet.dtype)
        with UNetFeatureTap(pipe.unet, predictor.blocks) as tap:
            pipe.unet(noisy, timestep)
        return predictor(tap.features, timestep), predictor(tap.features, timestep, predictor.weak_blocks)

    return probe


def probe_name(pipe: DepthGuidedPipeline, timestep: int) -> str:
    """Tells probes apart: signature of the U-Net, weights of the predictor, time step."""
    return f"{_signature_of(pipe)} {_digits(pipe.depth_predictor)} {timestep}"
