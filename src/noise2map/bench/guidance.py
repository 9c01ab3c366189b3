"""Cost of guidance: a guided step against an unguided one, and against naive gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from tqdm import tqdm

from noise2map.bench.timing import IDENTITY, BenchOptions, machine_facts, name_of, time_calls
from noise2map.convert import LSUN_256_FLAGS
from noise2map.convert.adm_flags import adm_architecture
from noise2map.guidance import (
    DepthGuidedPipeline,
    DepthPredictor,
    DepthPrior,
    GuidanceConfig,
    UNetFeatureTap,
    consistency_loss,
    guided_prediction,
    guided_step,
)
from noise2map.guidance.features import channels_last_on_cpu
from noise2map.guidance.gradient import read_depth
from noise2map.runs.operations import count_operations
from noise2map.runs.provenance import provenance
from noise2map.training.maps.dry_run import kept_bytes
from noise2map.zoo import label_of, resolve_generator

GUIDANCE_IDENTITY = ("unet", "prior", "checkpointing", *IDENTITY)

GUIDANCE_COLUMNS = {
    "type": "dtype",
    "stage": "stage",
    "ms": "ms",
    "x unguided": "over_unguided",
    "GFLOP": "gflop",
    "x GFLOP": "gflop_over_unguided",
    "kept MiB": "kept_mb",
    "peak MiB": "peak_mb",
}

UNGUIDED = "unguided"

READ = "depth read"

_SCALES = {"consistency": (1.0, 0.0), "prior": (0.0, 1.0), "both": (1.0, 1.0)}

_FULL = "both, all gradients"

_FROM_OUTPUT = "from the output, all gradients"

STAGES = (UNGUIDED, READ, *_SCALES, _FULL, _FROM_OUTPUT)

_TIMESTEP = 400

_FACTORS = (8, 16, 32)

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class GuidanceBenchOptions(BenchOptions):
    """Options of the guidance benchmark.

    Attributes:
        channels: width of the finest level; that of the published LSUN-256 U-Net is 256.
        size: side of the images in px; 256 there.
        prior_size: side of the prior's depth maps in px; 128 in the paper, half of the images'.
        prior_channels: width of its finest level; 32 beside a U-Net of 256, and the same proportion if 0.
        batch_size: images at a time.
        checkpointing: recompute the U-Net's activations instead of keeping them.
        model: a guided generator (shipped name or folder) in place of the U-Net of that shape; its parts have their own sizes.
    """

    channels: int
    size: int
    prior_size: int
    prior_channels: int
    batch_size: int
    checkpointing: bool = False
    model: str | None = None


@dataclass(frozen=True)
class GuidedParts:
    """What a guided step runs.

    Attributes:
        unet: the image U-Net.
        predictor: of its features.
        prior: of the predictor's depth range.
        name: of the U-Net, as tables call it.
        prior_name: likewise.
    """

    unet: UNet2DModel
    predictor: DepthPredictor
    prior: DepthPrior
    name: str
    prior_name: str

    @property
    def modules(self) -> tuple[UNet2DModel, DepthPredictor, DepthPrior]:
        """All of them."""
        return self.unet, self.predictor, self.prior

    @property
    def size(self) -> int:
        """Side of the images, px."""
        return int(self.unet.config.sample_size)


def lsun_unet(channels: int, size: int) -> UNet2DModel:
    """A U-Net with the proportions of the published LSUN-256 one: levels, attention, learnt variance.

    Raises:
        ValueError: if the numbers do not fit such a U-Net.
    """
    if size % 32 or size < 32:
        raise ValueError(f"size is {size}; expected a multiple of 32: the U-Net halves it five times")
    flags = {
        **LSUN_256_FLAGS,
        "image_size": size,
        "num_channels": channels,
        "channel_mult": "1,1,2,2,4,4",
        "attention_resolutions": ",".join(str(size // factor) for factor in _FACTORS),
        "num_head_channels": min(64, 2 * channels),
    }
    return UNet2DModel(**adm_architecture(flags).unet_config())


def _prior_channels(options: GuidanceBenchOptions) -> int:
    return options.prior_channels or max(options.channels // 8, 4)


def depth_prior(channels: int, size: int, **bounds: float) -> DepthPrior:
    """A prior of the proportions of `DepthPrior.small`, with ``channels`` at its finest level instead of 32."""
    small = DepthPrior.small(size).config["unet_config"]
    widths = [channels * width // 32 for width in small["block_out_channels"]]
    head, groups = channels, channels if channels < 32 else 32
    config = {**small, "block_out_channels": widths, "attention_head_dim": head, "norm_num_groups": groups}
    return DepthPrior(unet_config=config, **bounds)


def guided_parts(options: GuidanceBenchOptions) -> GuidedParts:
    """Parts of a saved generator, or fresh ones with the published proportions.

    Raises:
        ValueError: if the saved generator has no predictor or prior, or the numbers fit no U-Net.
    """
    if options.model is not None:
        pipe = DepthGuidedPipeline.from_pretrained(resolve_generator(options.model))
        if pipe.depth_predictor is None or pipe.depth_prior is None:
            raise ValueError(f"generator {options.model!r} has no depth predictor or no depth prior; expected one with both")
        side = pipe.depth_prior.image_size[0]
        return GuidedParts(pipe.unet, pipe.depth_predictor, pipe.depth_prior, label_of(options.model), f"its own at {side}")
    torch.manual_seed(options.seed)
    unet = lsun_unet(options.channels, options.size)
    bounds = {"min_depth": 0.5, "max_depth": 40.0}
    hidden = (max(options.channels // 2, 4), max(options.channels // 4, 4))  # 128 and 64 beside a U-Net of 256
    predictor = DepthPredictor.for_unet(unet, hidden_sizes=hidden, **bounds)
    width = _prior_channels(options)
    prior = depth_prior(width, options.prior_size, **bounds)
    name = f"LSUN-256 shape, {options.channels} channels"
    return GuidedParts(unet, predictor, prior, name, f"{width} channels at {options.prior_size}")


def guidance_calls(
    options: GuidanceBenchOptions, dtype: torch.dtype, parts: GuidedParts
) -> tuple[dict[str, Callable[[], Any]], set[int]]:
    """One sampling step in each of the ways that are compared, and the storages of the weights."""
    unet, predictor, prior = parts.modules
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    for module in parts.modules:
        module.eval().requires_grad_(False).to(options.device)
        if dtype != torch.float32:
            module.to(dtype)
    channels_last_on_cpu(unet)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    noise = torch.Generator().manual_seed(options.seed)
    x_t = torch.randn(options.batch_size, 3, parts.size, parts.size, generator=noise).to(options.device, dtype)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(index) for index in range(options.batch_size)]

    @torch.no_grad()
    def unguided() -> None:
        guided_step(scheduler, unet(x_t, _TIMESTEP).sample, _TIMESTEP, x_t, None)

    @torch.no_grad()
    def read() -> None:
        found = read_depth(unet, predictor, x_t, _TIMESTEP)
        guided_step(scheduler, found.model_output, _TIMESTEP, x_t, None)

    @torch.no_grad()
    def guided(scales: tuple[float, float]) -> None:
        found = guided_prediction(unet, predictor, prior, x_t, _TIMESTEP, GuidanceConfig.from_scales(*scales), generators())
        guided_step(scheduler, found.model_output, _TIMESTEP, x_t, found.gradient)

    def naive(from_output: bool) -> None:
        """The graph of the whole U-Net, and gradients of all weights: what ``loss.backward()`` does."""
        for module in parts.modules:
            module.requires_grad_(True)
        x = x_t.detach().clone().requires_grad_(True)
        with UNetFeatureTap(unet, predictor.blocks) as tap:
            output = unet(x, _TIMESTEP).sample
        if from_output:
            loss = output.float().square().sum()
        else:
            strong = predictor(tap.features, _TIMESTEP)
            loss = consistency_loss(strong, predictor(tap.features, _TIMESTEP, predictor.weak_blocks)).sum()
            tau = torch.full((options.batch_size,), _TIMESTEP)
            eta = torch.randn(options.batch_size, 1, *prior.image_size, generator=noise).to(x)
            loss = loss + prior.loss(strong, tau, eta).sum()
        loss.backward()
        for module in parts.modules:
            module.zero_grad(set_to_none=True)
            module.requires_grad_(False)
        guided_step(scheduler, output.detach(), _TIMESTEP, x_t, x.grad)

    calls: dict[str, Callable[[], Any]] = {UNGUIDED: unguided, READ: read}
    calls |= {name: lambda scales=scales: guided(scales) for name, scales in _SCALES.items()}
    calls |= {_FULL: lambda: naive(False), _FROM_OUTPUT: lambda: naive(True)}
    tensors = [one for module in parts.modules for one in (*module.parameters(), *module.buffers())]
    return calls, {tensor.untyped_storage()._cdata for tensor in tensors}


def count(call: Callable[[], Any], weights: set[int], device: torch.device) -> dict[str, float | None]:
    """Operations of a call, bytes kept for its backward pass (weights aside), and additional CUDA memory."""
    with kept_bytes(weights) as kept:
        operations = count_operations(call)
    peak = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = round((torch.cuda.max_memory_allocated(device) - before) / _MIB, 1)
    return {"gflop": operations / 1e9, "kept_mb": round(sum(kept.values()) / _MIB, 1), "peak_mb": peak}


def run_guidance_bench(options: GuidanceBenchOptions) -> list[dict[str, Any]]:
    """One row for each type and way; the ratios are medians over rounds in which the ways take turns."""
    rows = []
    for dtype in options.dtypes:
        parts = guided_parts(options)
        calls, weights = guidance_calls(options, dtype, parts)
        times = time_calls(calls, options, name_of(dtype))
        bar = tqdm(calls.items(), desc=f"{name_of(dtype)}, operations", unit="call")
        counts = {stage: count(call, weights, options.device) for stage, call in bar}
        for stage, own in times.items():
            row: dict[str, Any] = {"unet": parts.name, "size": parts.size, "batch_size": options.batch_size}
            row |= {"prior": parts.prior_name, "checkpointing": options.checkpointing}
            row |= {"stage": stage, "ms": median(own), "over_unguided": median(a / b for a, b in zip(own, times[UNGUIDED]))}
            row |= {**counts[stage], "gflop_over_unguided": counts[stage]["gflop"] / counts[UNGUIDED]["gflop"]}
            row |= {"rounds": options.rounds, "clock": options.clock} | machine_facts(options.device)
            rows.append(row | provenance(options.device, dtype, options.seed))
    return rows
