"""A small U-Net that reads depth from images, to ask what a set of images with depth teaches."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.guidance.depth_range import DepthRange
from noise2map.metrics import DEPTH_SCORES, DepthScores
from noise2map.training.generators.depth_predictor import masked_l1

_GROUPS = 4


class _Block(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for before in (in_channels, out_channels):
            layers += [nn.Conv2d(before, out_channels, 3, padding=1), nn.GroupNorm(_GROUPS, out_channels), nn.SiLU()]
        super().__init__(*layers)


class SmallDepthUNet(nn.Module):
    """Image -> depth signal by a plain U-Net, 0.4 million weights at the default widths; any image size.

    Args:
        widths: Channels of each level, fine to coarse, multiples of 4.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Block(before, width) for before, width in zip((3, *widths), widths))
        self.up = nn.ModuleList(_Block(deep + skip, skip) for skip, deep in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] -> depth signal `(B, 1, H, W)`, nominally in [-1, 1]."""
        skips = []
        hidden = images
        for level, block in enumerate(self.down):
            hidden = block(functional.avg_pool2d(hidden, 2, ceil_mode=True) if level else hidden)
            skips.append(hidden)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1])):
            raised = functional.interpolate(hidden, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            hidden = block(torch.cat([raised, skip], dim=1))
        return self.head(hidden)


def fit_small_depth(
    images: Tensor,
    signal: Tensor,
    mask: Tensor,
    *,
    num_steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> SmallDepthUNet:
    """Train the U-Net by L1 on the depth signal; half of the images are mirrored.

    Args:
        images: `(N, 3, H, W)` uint8.
        signal: Depth signal `(N, 1, H, W)` in [-1, 1].
        mask: Where it is known, `(N, 1, H, W)` bool.
        num_steps: Optimiser steps; the learning rate falls to zero along a cosine.
        batch_size: Images of a step, drawn with replacement.
        learning_rate: Of AdamW, at the start.
        seed: Of the weights and of the order of the images: equal seeds start from equal weights, whatever the images.
        device: Where to train.
        on_step: Called after each step.

    Returns:
        The U-Net in evaluation mode.

    Raises:
        ValueError: If the shapes do not fit, there is no image, or a number is not positive.
    """
    if images.ndim != 4 or not len(images) or signal.shape != mask.shape or signal.shape != (len(images), 1, *images.shape[2:]):
        shapes = [tuple(x.shape) for x in (images, signal, mask)]
        raise ValueError(f"images, signal and mask have shapes {shapes}; expected (N, 3, H, W) and twice (N, 1, H, W), N >= 1")
    if num_steps < 1 or batch_size < 1:
        raise ValueError(f"num_steps and batch_size must be at least 1, got {num_steps} and {batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallDepthUNet().to(device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    curve = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(num_steps):
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        mirrored = (torch.rand(batch_size, generator=generator) < 0.5)[:, None, None, None]
        batch, target, known = (torch.where(mirrored, x[chosen].flip(-1), x[chosen]).to(device) for x in (images, signal, mask))
        loss = masked_l1(model(batch.float() / 127.5 - 1), target, known)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        curve.step()
        on_step()
    return model.eval()


@torch.no_grad()
def score_small_depth(
    model: SmallDepthUNet, images: Tensor, depth_m: Tensor, depth_range: DepthRange, batch_size: int = 32
) -> dict[str, float]:
    """Depth scores on real images, averaged over images.

    Args:
        model: The trained U-Net.
        images: `(N, 3, H, W)` uint8.
        depth_m: True depth `(N, H, W)`, metres, 0 where unknown.
        depth_range: What turns the signal into metres.
        batch_size: Images at a time.

    Returns:
        The names of `DEPTH_SCORES` to values.

    Raises:
        ValueError: If the depth range has no metres.
    """
    if depth_range.codec is None:
        raise ValueError("depth without metres cannot be scored; expected a predictor with min_depth and max_depth")
    device = next(model.parameters()).device
    scores = DepthScores(depth_range.codec.min_depth, depth_range.codec.max_depth)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        signal = model(images[part].to(device).float() / 127.5 - 1)
        scores.update(depth_range.decode(signal).cpu(), depth_m[part])
    found = scores.compute()
    return {name: float(found[name]) for name in DEPTH_SCORES}
