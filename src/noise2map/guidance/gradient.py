"""One forward pass of the U-Net -> its prediction, and the gradient of the guidance losses to the noisy image (DAG, Sec. 3.3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from noise2map.guidance.config import GuidanceConfig
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import DepthPrior
from noise2map.guidance.features import UNetFeatureTap
from noise2map.guidance.losses import StepDepth
from noise2map.guidance.placebos import placebo_gradient


@dataclass
class GuidedPrediction:
    """Output of one guided forward pass.

    Attributes:
        model_output: the U-Net's prediction, ``(B, C or 2C, H, W)``, without a graph.
        gradient: gradient to ``x_t`` of the weighted sum of the losses, ``(B, C, H, W)`` float32; None without guidance.
        losses: name -> unweighted loss of each image, ``(B,)``.
        depth_signal: the strong branch's depth signal, ``(B, 1, H, W)``, without a graph.
        skipped: whether the gradient of an image was not finite and was left out, ``(B,)``.
    """

    model_output: Tensor
    gradient: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    depth_signal: Tensor | None = None
    skipped: Tensor | None = None


def guided_prediction(
    unet: UNet2DModel,
    predictor: DepthPredictor,
    prior: DepthPrior | None,
    x_t: Tensor,
    timestep: int,
    guidance: GuidanceConfig,
    generators: Sequence[torch.Generator],
    *,
    image_steps: int = 1000,
    class_labels: Tensor | None = None,
) -> GuidedPrediction:
    """Prediction and guidance gradient by one forward pass of the U-Net and one backward pass through its first half.

    The graph ends at the last block that the losses differentiate; the rest of the decoder runs without one. All losses share
    the backward pass. No parameter requires or receives a gradient meanwhile.

    Args:
        unet: the frozen U-Net.
        predictor: its depth predictor.
        prior: the depth prior, for losses that need one and have none of their own.
        x_t: noisy images ``(B, C, H, W)``.
        timestep: their time step.
        guidance: what guides; at least one loss with a scale above 0.
        generators: one for each image, for what the losses draw.
        image_steps: number of time steps of the image's process.
        class_labels: of a class-conditional U-Net, ``(B,)``.

    Returns:
        The prediction, the gradient and the losses. The gradient of an image does not depend on the batch (but with the placebo
        ``"neighbor"``).

    Raises:
        ValueError: if no loss guides, or a gradient is not finite and ``guidance.on_nonfinite`` is ``"error"``, naming step and
            loss.
    """
    guidance = guidance.bound(pipe_parts={"depth_predictor": predictor, "depth_prior": prior})
    if not guidance.losses:
        raise ValueError("no loss guides; expected at least one with a scale above 0")
    strong, weak = guidance.branches(predictor)
    needed = [tuple(loss.blocks_needed(strong, weak)) for loss in guidance.losses]
    last = max(k for blocks in needed for k in blocks)
    size = (x_t.shape[-2], x_t.shape[-1])
    with torch.inference_mode(False), torch.enable_grad(), frozen(unet, predictor, *guidance.modules):
        x = x_t.detach().clone().requires_grad_(True)
        with UNetFeatureTap(unet, {*strong, *(k for blocks in needed for k in blocks)}, grad_until=last) as tap:
            output = unet(x, timestep, class_labels=class_labels).sample.detach()
        depth = StepDepth(predictor, tap.features, timestep, image_steps, (strong, weak), size, differentiable=needed)
        values = {loss.name: loss(tap.features, depth, generators) for loss in guidance.losses}
        total = sum((loss.scale * values[loss.name].sum() for loss in guidance.losses), torch.zeros((), device=x.device))
        (gradient,) = torch.autograd.grad(total, x)
        signal = depth.strong.detach()
    detached = {name: value.detach() for name, value in values.items()}
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    gradient, skipped = _check_finite(gradient, detached, timestep, guidance.on_nonfinite)
    if guidance.placebo is not None:
        gradient = placebo_gradient(guidance.placebo, gradient, generators)
    return GuidedPrediction(output, gradient, detached, signal, skipped)


def read_depth(
    unet: UNet2DModel,
    predictor: DepthPredictor,
    x_t: Tensor,
    timestep: int,
    blocks: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
) -> GuidedPrediction:
    """Prediction and depth signal by one forward pass, without any gradient."""
    with torch.no_grad(), UNetFeatureTap(unet, predictor.branch(blocks)) as tap:
        output = unet(x_t, timestep, class_labels=class_labels).sample
        depth = predictor(tap.features, timestep, blocks, (x_t.shape[-2], x_t.shape[-1]))
    return GuidedPrediction(output, depth_signal=depth)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of the modules requires a gradient inside; afterwards each is as it was."""
    trainable = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _check_finite(gradient: Tensor, values: dict[str, Tensor], timestep: int, on_nonfinite: str) -> tuple[Tensor, Tensor]:
    """The gradient, zero where it is not finite, and for which images that is so."""
    bad = ~torch.isfinite(gradient).flatten(1).all(1)
    if bool(bad.any()) and on_nonfinite == "error":
        names = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        images = bad.nonzero().flatten().tolist()
        raise ValueError(
            f"the gradient of the {' and '.join(names or values)} loss at time step {timestep} is not finite for images {images}; "
            "lower the scales, use a wider type than float16, or pass on_nonfinite='skip' to leave such steps unguided"
        )
    return torch.where(bad[:, None, None, None], torch.zeros_like(gradient), gradient), bad
