"""One forward pass of the U-Net -> its prediction, and the gradient of the guidance losses to the noisy image (DAG, Sec. 3.3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from noise2map.guidance.config import GuidanceLosses
from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import DepthPrior, draw_prior_noise, draw_tau
from noise2map.guidance.features import UNetFeatureTap
from noise2map.guidance.losses import consistency_loss


@dataclass
class GuidedPrediction:
    """What one forward pass gives.

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
    losses: GuidanceLosses,
    generators: Sequence[torch.Generator],
    *,
    image_steps: int = 1000,
    class_labels: Tensor | None = None,
) -> GuidedPrediction:
    """Prediction and guidance gradient by one forward pass of the U-Net and one backward pass through its first half.

    The graph ends at the last block that the losses differentiate; the rest of the decoder runs without one. Both losses share
    the backward pass. No parameter requires or receives a gradient meanwhile.

    Args:
        unet: the frozen U-Net.
        predictor: its depth predictor.
        prior: the depth prior; needed when ``losses.prior_scale`` is positive.
        x_t: noisy images ``(B, C, H, W)``.
        timestep: their time step.
        losses: what guides.
        generators: one for each image, for what the prior draws.
        image_steps: number of time steps of the image's process.
        class_labels: of a class-conditional U-Net, ``(B,)``.

    Returns:
        The prediction, the gradient and the losses. The gradient of an image does not depend on the batch.

    Raises:
        ValueError: if a gradient is not finite and ``losses.on_nonfinite`` is ``"error"``, naming step and loss.
    """
    strong, weak = branches(predictor, losses)
    needed = (*(weak if losses.consistency_scale else ()), *(strong if losses.prior_scale else ()))
    size = (x_t.shape[-2], x_t.shape[-1])
    parts = [module for module in (unet, predictor, prior) if module is not None]
    with torch.inference_mode(False), torch.enable_grad(), frozen(*parts):
        x = x_t.detach().clone().requires_grad_(True)
        blocks = {*strong, *(weak if losses.consistency_scale else ())}
        with UNetFeatureTap(unet, blocks, grad_until=max(needed)) as tap:
            output = unet(x, timestep, class_labels=class_labels).sample.detach()
        with torch.set_grad_enabled(losses.prior_scale > 0):
            # Without the prior nothing is differentiated through the strong branch.
            depth = predictor(tap.features, timestep, strong, size)
        values = {}
        if losses.consistency_scale:
            values["consistency"] = consistency_loss(depth, predictor(tap.features, timestep, weak, size), losses.reduction)
        if losses.prior_scale:
            assert prior is not None
            tau = draw_tau(losses.prior_timesteps, timestep, image_steps, prior.num_train_timesteps, generators)
            values["prior"] = prior.loss(depth, tau, draw_prior_noise(prior, generators), losses.reduction)
        scales = {"consistency": losses.consistency_scale, "prior": losses.prior_scale}
        total = sum((scales[name] * value.sum() for name, value in values.items()), torch.zeros((), device=x.device))
        (gradient,) = torch.autograd.grad(total, x)
    detached = {name: value.detach() for name, value in values.items()}
    gradient, skipped = _check_finite(gradient.to(torch.promote_types(gradient.dtype, torch.float32)), detached, timestep, losses)
    return GuidedPrediction(output, gradient, detached, depth.detach(), skipped)


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


def branches(predictor: DepthPredictor, losses: GuidanceLosses) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks of the strong and the weak branch.

    Raises:
        ValueError: if the predictor lacks one of them, or they are the same.
    """
    strong = predictor.branch(losses.strong_blocks)
    weak = predictor.weak_blocks if losses.weak_blocks is None else predictor.branch(losses.weak_blocks)
    if strong == weak:
        raise ValueError(f"the strong and the weak branch both read blocks {strong}; expected different ones")
    return strong, weak


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


def _check_finite(gradient: Tensor, values: dict[str, Tensor], timestep: int, losses: GuidanceLosses) -> tuple[Tensor, Tensor]:
    """The gradient, zero where it is not finite, and for which images that is so."""
    bad = ~torch.isfinite(gradient).flatten(1).all(1)
    if bool(bad.any()) and losses.on_nonfinite == "error":
        names = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        images = bad.nonzero().flatten().tolist()
        raise ValueError(
            f"the gradient of the {' and '.join(names or values)} loss at time step {timestep} is not finite for images {images}; "
            "lower the scales, use a wider type than float16, or pass on_nonfinite='skip' to leave such steps unguided"
        )
    return torch.where(bad[:, None, None, None], torch.zeros_like(gradient), gradient), bad
