"""What a run on a generator will take, told before it starts: one step of each kind is tried, and the rest is multiplication."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import diffusers
import torch

from noise2map.generation.loading import load_generator
from noise2map.generation.predictor_training import PredictorTrainingOptions
from noise2map.generation.sampling import SamplingOptions, autocast, describe
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.guidance.gradient import guided_prediction
from noise2map.guidance.scheduler_step import guided_step, set_timesteps
from noise2map.inference.loading import pick_device
from noise2map.runs.peak_memory import read_peak, reset_peak
from noise2map.runs.words import counted, duration
from noise2map.training.generators.depth_predictor import fit_depth_predictor, score_depth_predictor
from noise2map.training.generators.predictor_study import probe_blocks

_LONG_ENOUGH = 1.0  # seconds of tries from which one more would tell little
_TRIES = 5
_GIB = 2**30


@dataclass(frozen=True)
class Work:
    """Equal steps of a run.

    Attributes:
        name: What a step is.
        seconds: Of one, as tried.
        times: How many the run has.
    """

    name: str
    seconds: float
    times: int


@dataclass(frozen=True)
class Forecast:
    """Forecast of a run.

    Attributes:
        title: What it is of.
        parameters: Of each network, by name.
        works: Its steps.
        peak_bytes: The most memory while steps were tried: of the process on a CPU, of tensors on a GPU.
        device: Where they were tried.
    """

    title: str
    parameters: dict[str, int]
    works: tuple[Work, ...]
    peak_bytes: float
    device: torch.device

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(work.seconds * work.times for work in self.works)

    def text(self) -> str:
        """Lines for the screen."""
        sizes = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in self.parameters.items())
        where = (
            f"{self.device.type}, {counted(torch.get_num_threads(), 'thread')}" if self.device.type == "cpu" else str(self.device)
        )
        steps = [f"{work.name}: {work.times} x {work.seconds:.3g} s" for work in self.works]
        return "\n".join(
            [
                f"{self.title} ({where})",
                f"parameters: {sizes}",
                *steps,
                f"time: about {duration(self.seconds)}, without reading and writing files",
                f"memory: {self.peak_bytes / _GIB:.2f} GiB at most in the steps that were tried",
            ]
        )


def forecast_sampling(
    pipe: DepthGuidedPipeline, images: int, options: SamplingOptions, guidance: GuidanceConfig, *, pair: bool = True
) -> Forecast:
    """Forecast of `noise2map.generation.sampling.sample_images`: one unguided and one guided step of a batch are tried.

    Args:
        pipe: The generator with the parts that the guidance needs.
        images: How many seeds.
        options: How they are drawn.
        guidance: What guides.
        pair: Whether the same seeds are also drawn without guidance.

    Raises:
        ValueError: If the pipeline refuses an argument.
    """
    batch = min(options.batch_size, images)
    pipe.check_call(guidance, batch_size=batch, num_inference_steps=options.num_inference_steps, eta=options.eta)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    set_timesteps(scheduler, options.num_inference_steps)
    log_snr = torch.logit(scheduler.alphas_cumprod.double())
    steps = [int(t) for t in scheduler.timesteps]
    guided_at = [t for index, t in enumerate(steps) if guidance.guides(index, float(log_snr[t]), len(steps), pipe.depth_predictor)]
    guidance = guidance.bound(convention=pipe.config.convention, reduction=pipe.config.reduction)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    side = pipe.unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    noise = torch.randn(batch, pipe.unet.config.in_channels, height, width, generator=generators[0]).to(
        pipe.device, pipe.unet.dtype
    )

    def unguided() -> None:
        guided_step(scheduler, pipe.unet(noise, steps[0]).sample, steps[0], noise, None, eta=options.eta, generator=generators)

    def guided() -> None:
        t = guided_at[0]
        parts = (pipe.unet, pipe.depth_predictor, pipe.depth_prior)
        count = int(scheduler.config.num_train_timesteps)
        found = guided_prediction(*parts, noise, t, guidance, generators, image_steps=count)
        how = {"convention": guidance.convention, "eta": options.eta, "generator": generators}
        guided_step(scheduler, found.model_output, t, noise, found.gradient, **how)

    batches = -(-images // batch)
    own = len(steps) - len(guided_at)  # steps of a guided run that nothing guides
    plain = own + (len(steps) if pair and guided_at else 0)
    reset_peak(pipe.device)
    works = []
    with torch.no_grad(), autocast(pipe.device, options.dtype):
        what = counted(batch, "image") + f" of {width}x{height}"
        if plain:
            works.append(Work(f"unguided steps of {what}", tried(unguided, pipe.device), plain * batches))
        if guided_at:
            works.append(Work(f"guided steps of {what}", tried(guided, pipe.device), len(guided_at) * batches))
    networks = {"U-Net": pipe.unet, "depth predictor": pipe.depth_predictor, "depth prior": pipe.depth_prior}
    title = f"{counted(images, 'image')} in {counted(len(steps), 'step')}, {describe(guidance)}"
    return Forecast(title, sizes(networks), tuple(works), read_peak(pipe.device), pipe.device)


def forecast_predictor(options: PredictorTrainingOptions) -> Forecast:
    """Forecast of ``noise2map train depth-predictor``: some steps on noise are tried; no data is read, nothing is written.

    Raises:
        OSError: If the generator is missing.
        ValueError: If its images are not square, or it has no such blocks.
    """
    diffusers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    pipe = load_generator(options.model, device=pick_device(options.device))
    unet, study, side = pipe.unet.eval().requires_grad_(False), options.study, pipe.unet.config.sample_size
    if not isinstance(side, int):
        raise ValueError(f"the generator's images are {side}; expected squares")
    images = torch.randint(256, (study.batch_size, 3, side, side), dtype=torch.uint8)
    depths = torch.rand(study.batch_size, side, side)
    reset_peak(pipe.device)
    ends = [perf_counter()]
    fit = fit_depth_predictor(
        unet,
        images,
        depths,
        scheduler=pipe.scheduler,
        num_steps=3,
        batch_size=study.batch_size,
        bf16=study.bf16,
        progress=None,
        on_step=lambda *_: ends.append(perf_counter()),
        strong_blocks=study.strong_blocks,
        weak_blocks=study.weak_blocks,
        probe_blocks=probe_blocks(unet, study),  # of the predictor of the most images; the others cost less
    )
    first, *others = (after - before for before, after in itertools.pairwise(ends))
    step = min(others)
    score = tried(
        lambda: score_depth_predictor(
            unet,
            fit.predictor,
            images,
            depths,
            timesteps=study.timesteps[:1],
            scheduler=pipe.scheduler,
            batch_size=study.batch_size,
        ),
        pipe.device,
    )
    count = len(study.counts)
    batches = -(-options.val_images // study.batch_size) * len(study.timesteps)
    works = (
        Work("standardised features", max(0.0, first - step), count),
        Work(f"steps on {counted(study.batch_size, 'image')} of {side}x{side}", step, count * study.steps),
        Work("scored batches", score, count * batches),
    )
    title = f"{counted(count, 'depth predictor')} of {', '.join(map(str, study.counts))} images"
    return Forecast(title, sizes({"U-Net": unet, "depth predictor": fit.predictor}), works, read_peak(pipe.device), pipe.device)


def tried(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: the shortest of up to five, of one alone if it takes long."""
    seconds: list[float] = []
    while len(seconds) < _TRIES and sum(seconds) < _LONG_ENOUGH:
        began = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - began)
    return min(seconds)


def sizes(networks: dict[str, Any]) -> dict[str, int]:
    """Parameters of the networks that there are."""
    return {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()
        if network is not None
    }
