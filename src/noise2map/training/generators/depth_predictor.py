"""Training of a depth predictor on the features of a frozen diffusion U-Net (DAG, Sec. 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from tqdm import tqdm

from noise2map.diffusion import add_noise, image_generator, tables_from_betas
from noise2map.diffusion.schedule import DiscreteTables
from noise2map.guidance import DepthPredictor, UNetFeatureTap
from noise2map.metrics import DepthScores

_STATISTICS_BATCHES = 4


@dataclass
class DepthPredictorFit:
    """A trained predictor and how it got there.

    Attributes:
        predictor: in evaluation mode, on the U-Net's device.
        history: for each step, the L1 loss by branch (``"2,4,5,6,7"``, ``"6"``), in units of the signal [-1, 1].
    """

    predictor: DepthPredictor
    history: list[dict[str, float]] = field(default_factory=list)


def fit_depth_predictor(
    unet: UNet2DModel,
    images: Tensor,
    depths: Tensor,
    *,
    valid: Tensor | None = None,
    predictor: DepthPredictor | None = None,
    scheduler: Any = None,
    num_steps: int = 2000,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    flip: bool = True,
    bf16: bool = False,
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    progress: str | None = "depth predictor",
    **config: Any,
) -> DepthPredictorFit:
    """Trains all branches of a predictor together, by L1 at random time steps.

    The U-Net is frozen and its features are computed on the fly: memory is that of one batch, whatever the number of images.
    Time steps are drawn down to the predictor's ``min_log_snr``. The statistics that standardise features are measured first.

    Args:
        unet: the generator's U-Net.
        images: ``(N, 3, H, W)`` of the U-Net's size, uint8, or floating point in [-1, 1]; may stay on the CPU.
        depths: labels ``(N, H, W)``, metres with 0 where there is none for a metric predictor, or relative in [0, 1] with NaN
            where there is none; ground truth, or what any depth model estimates.
        valid: boolean mask ``(N, H, W)`` instead of that rule.
        predictor: trained further if given, else made for the U-Net.
        scheduler: gives the betas of the U-Net's process; by default the linear ones of 1000 steps.
        num_steps: optimizer steps.
        batch_size: images of a step, drawn with replacement.
        learning_rate: of Adam, at the start; it falls to zero along a cosine.
        flip: mirror half of the images.
        bf16: compute features and depth under bfloat16 autocast; weights, losses and statistics stay in float32.
        seed: of images, time steps, noise and, if the predictor is new, its weights.
        on_step: called with the step's number and losses.
        progress: name of the progress bar; None for no bar.
        **config: of a new predictor, see `DepthPredictor` (``min_depth``, ``max_depth``, ``probe_blocks`` ...).

    Returns:
        The predictor and the history of its losses.

    Raises:
        ValueError: if shapes, sizes or types do not fit, or the predictor belongs to another U-Net.
    """
    _check_data(unet, images, depths, valid, num_steps, batch_size)
    device = next(unet.parameters()).device
    fresh = predictor is None or not _is_standardised(predictor)
    if predictor is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            predictor = DepthPredictor.for_unet(unet, **config)
    elif config:
        raise ValueError(f"predictor and its configuration ({', '.join(config)}) are both given; expected one of them")
    predictor.check_unet(unet)
    predictor.to(device).train()
    sampler = _Batches(unet, predictor, images, depths, valid, scheduler, batch_size, flip, seed)
    if fresh:  # the heads of one that is trained further have learnt with those it has
        _measure_statistics(predictor, sampler)
    optimizer = torch.optim.Adam(predictor.parameters(), learning_rate)
    curve = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    fit = DepthPredictorFit(predictor)
    for step in tqdm(range(num_steps), desc=progress, unit="step", disable=progress is None):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features, timesteps, target, mask = sampler.draw()
            found = {blocks: predictor(features, timesteps, blocks) for blocks in predictor.branches}
        losses = {_label(blocks): masked_l1(signal, target, mask) for blocks, signal in found.items()}
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        curve.step()
        fit.history.append({name: loss.item() for name, loss in losses.items()})
        if on_step is not None:
            on_step(step, fit.history[-1])
    predictor.eval()
    return fit


def score_depth_predictor(
    unet: UNet2DModel,
    predictor: DepthPredictor,
    images: Tensor,
    depths: Tensor,
    *,
    valid: Tensor | None = None,
    timesteps: Sequence[int] = (50, 200, 400, 600, 800),
    scheduler: Any = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Scores every branch at every time step: rows for DAG's figures of accuracy by block and by noise level.

    The noise of an image follows from the seed, its place and the time step, so predictors are compared on the same noisy images.

    Args:
        unet: the generator's U-Net.
        predictor: its predictor; `probe_blocks` give the branches of single blocks.
        images: ``(N, 3, H, W)``, uint8, or floating point in [-1, 1].
        depths: true depth ``(N, H, W)``, as for `fit_depth_predictor`.
        valid: boolean mask ``(N, H, W)``.
        timesteps: noise levels.
        scheduler: gives the betas of the U-Net's process; by default the linear ones of 1000 steps.
        batch_size: images at a time.
        seed: of the noise.

    Returns:
        A row for each time step and branch: ``timestep``, ``blocks`` (``"2,4,5,6,7"``), ``l1`` (of the signal), ``images``;
        and for metric predictors the names of `noise2map.metrics.DepthScores`, averaged over images.

    Raises:
        ValueError: if shapes, sizes or types do not fit, or the predictor belongs to another U-Net.
    """
    _check_data(unet, images, depths, valid, 1, batch_size)
    predictor.check_unet(unet)
    reference, codec = unet.conv_in.weight, predictor.depth_range.codec
    tables = tables_from_betas((scheduler or DDPMScheduler()).betas)
    rows = []
    for t in timesteps:
        levels = [level.to(reference) for level in tables.alpha_sigma(torch.tensor(t))]
        errors: dict[tuple[int, ...], list[float]] = {blocks: [] for blocks in predictor.branches}
        scores = {blocks: DepthScores(codec.min_depth, codec.max_depth) for blocks in predictor.branches} if codec else {}
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            target, mask = predictor.encode_depth(depths[part], None if valid is None else valid[part])
            noise = [torch.randn(images.shape[1:], generator=image_generator(seed, f"{i}/{t}")) for i in range(len(images))[part]]
            noisy = add_noise(_signal(images[part], reference), torch.stack(noise).to(reference), *levels)
            with torch.no_grad(), UNetFeatureTap(unet, predictor.blocks) as tap:
                unet(noisy, t)
                found = {blocks: predictor(tap.features, t, blocks).float().cpu() for blocks in predictor.branches}
            for blocks, signal in found.items():
                errors[blocks] += [masked_l1(*one).item() for one in zip(signal, target, mask) if one[2].any()]
                if codec:
                    scores[blocks].update(predictor.decode_depth(signal), depths[part].float(), mask[:, 0])
        for blocks, values in errors.items():
            row = {"timestep": t, "blocks": _label(blocks), "images": len(values), "l1": sum(values) / max(len(values), 1)}
            rows.append({**row, **({name: value.item() for name, value in scores[blocks].compute().items()} if codec else {})})
    return rows


def masked_l1(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference over valid pixels of ``(B, 1, h, w)``, scalar; 0 if there are none."""
    difference = (predicted.float() - target.float()).abs() * valid
    return difference.sum() / valid.sum().clamp(min=1)


class _Batches:
    """Draws labelled features at random time steps."""

    def __init__(
        self,
        unet: UNet2DModel,
        predictor: DepthPredictor,
        images: Tensor,
        depths: Tensor,
        valid: Tensor | None,
        scheduler: Any,
        batch_size: int,
        flip: bool,
        seed: int,
    ) -> None:
        self.unet, self.predictor, self.images, self.depths, self.valid = unet, predictor, images, depths, valid
        self.tables: DiscreteTables = tables_from_betas((scheduler or DDPMScheduler()).betas)
        self.timesteps = (0, self.tables.last_step(predictor.config.min_log_snr) + 1)
        self.batch_size, self.flip = batch_size, flip
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def draw(self) -> tuple[dict[int, Tensor], Tensor, Tensor, Tensor]:
        """Features by block, time steps ``(B,)``, depth signal and mask ``(B, 1, h, w)``."""
        reference = self.unet.conv_in.weight
        chosen = torch.randint(0, len(self.images), (self.batch_size,), generator=self.generator)
        timesteps = torch.randint(*self.timesteps, (self.batch_size,), generator=self.generator)
        mirrored = torch.rand(self.batch_size, generator=self.generator) < (0.5 if self.flip else 0.0)
        batch = _signal(self.images[chosen], reference)
        mask = None if self.valid is None else self.valid[chosen]
        target, mask = self.predictor.encode_depth(self.depths[chosen], mask)
        target, mask = (_mirror(x, mirrored).to(reference.device) for x in (target, mask))
        noise = torch.randn(batch.shape, generator=self.generator).to(reference)
        alpha, sigma = (level.to(reference) for level in self.tables.alpha_sigma(timesteps))
        noisy = add_noise(_mirror(batch, mirrored.to(reference.device)), noise, alpha, sigma)
        timesteps = timesteps.to(reference.device)
        with UNetFeatureTap(self.unet, self.predictor.blocks) as tap:
            self.unet(noisy, timesteps)
        return tap.features, timesteps, target, mask


def _signal(images: Tensor, reference: Tensor) -> Tensor:
    """Images in [-1, 1], in the type and on the device of the U-Net's weights."""
    images = images.to(reference.device)
    return (images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images).to(reference.dtype)


def _label(blocks: Sequence[int]) -> str:
    return ",".join(map(str, blocks))


def _mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def _is_standardised(predictor: DepthPredictor) -> bool:
    """Whether a predictor has statistics of features already, other than those it is made with."""
    return any(bool((one.mean != 0).any() or (one.std != 1).any()) for one in predictor.standardizers.values())


def _measure_statistics(predictor: DepthPredictor, batches: _Batches) -> None:
    """Mean and deviation of each channel over some batches, at the time steps that training sees."""
    sums = {k: [0, 0.0, 0.0] for k in predictor.blocks}
    for _ in range(_STATISTICS_BATCHES):
        features = batches.draw()[0]
        for k, (count, total, squares) in sums.items():
            values = features[k].double().transpose(0, 1).flatten(1)
            sums[k] = [count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)]
    for k, (count, total, squares) in sums.items():
        mean = total / count
        standardizer = predictor.standardizers[str(k)]
        standardizer.mean.copy_(mean)
        standardizer.std.copy_((squares / count - mean.square()).clamp(min=1e-6).sqrt())


def _check_data(unet: UNet2DModel, images: Tensor, depths: Tensor, valid: Tensor | None, num_steps: int, batch_size: int) -> None:
    if images.ndim != 4 or images.shape[1] != unet.config.in_channels or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, {unet.config.in_channels}, H, W) with N >= 1")
    size = unet.config.sample_size
    if size is not None and tuple(images.shape[2:]) != ((size, size) if isinstance(size, int) else tuple(size)):
        raise ValueError(f"images have {images.shape[2]}x{images.shape[3]} px; expected the U-Net's sample_size {size}")
    for name, value in (("depths", depths), ("valid", valid)):
        if value is not None and (value.shape != (len(images), *images.shape[2:])):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {(len(images), *images.shape[2:])}")
    if images.dtype != torch.uint8 and (not images.is_floating_point() or bool((images.abs() > 1.001).any())):
        raise ValueError(f"images of type {images.dtype} reach {images.abs().max()}; expected uint8, or floating point in [-1, 1]")
    for name, number in (("num_steps", num_steps), ("batch_size", batch_size)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}; expected a whole number, at least 1")
