"""Feature extractors of distribution distances: any named network, and depth painted for one."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Rendering = Literal["disparity", "metric"]


class FeatureExtractor(nn.Module):
    """Maps images `(B, 3, H, W)` uint8 to features `(B, size)`.

    Attributes:
        name: What it is, weights included: distances are comparable only where names are equal.
        size: Number of features.
    """

    name: str
    size: int


class DepthFeatures(FeatureExtractor):
    """Features of the depth that an estimator sees in an image, painted as a gray image: the input of dFID.

    Args:
        estimator: Maps images `(B, 3, H, W)` uint8 to depth `(B, h, w)` in metres, or in any unit that is proportional to it.
        extractor: Reads the painted images.
        rendering: `"disparity"` paints inverse depth from its smallest (black) to its largest value in the image (white), as
            depth networks without a unit are shown; it is blind to scale. `"metric"` paints the logarithm of depth between
            `depth_range` and sees scale.
        estimator_name: Goes into the name of the distance.
        depth_range: Nearest and farthest depth of `"metric"`, metres.

    Raises:
        ValueError: If the rendering is unknown or the range is impossible.
    """

    def __init__(
        self,
        estimator: Callable[[Tensor], Tensor],
        extractor: FeatureExtractor,
        rendering: Rendering = "disparity",
        estimator_name: str = "depth",
        depth_range: tuple[float, float] = (0.5, 40.0),
    ) -> None:
        super().__init__()
        render_depth(torch.ones(1, 1, 1), rendering, depth_range)  # refuses impossible choices now
        self.estimator, self.extractor, self.rendering, self.depth_range = estimator, extractor, rendering, depth_range
        self.size = extractor.size
        self.name = f"{extractor.name} of {rendering} of {estimator_name}"

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> features `(B, size)`."""
        return self.of_depth(self.estimator(images))

    def of_depth(self, depth: Tensor) -> Tensor:
        """Depth `(B, h, w)` estimated before -> features `(B, size)`."""
        return self.extractor(render_depth(depth, self.rendering, self.depth_range))


def render_depth(depth: Tensor, rendering: Rendering = "disparity", depth_range: tuple[float, float] = (0.5, 40.0)) -> Tensor:
    """Depth `(B, h, w)`, positive, as gray images `(B, 3, h, w)` uint8, near white; see :class:`DepthFeatures`.

    Raises:
        ValueError: If the rendering is unknown, the range is impossible, or a depth is not positive and finite.
    """
    near, far = depth_range
    if rendering not in ("disparity", "metric") or not 0 < near < far:
        raise ValueError(
            f"rendering must be 'disparity' or 'metric', with 0 < near < far, got {rendering!r} and a range of {near} to {far}"
        )
    if not bool((torch.isfinite(depth) & (depth > 0)).all()):
        raise ValueError(f"depth must be positive and finite, got {float(depth.min()):g} to {float(depth.max()):g}")
    values = depth.double()
    if rendering == "metric":
        unit = (math.log(far) - values.log()) / (math.log(far) - math.log(near))
    else:
        inverse = 1 / values
        low, high = inverse.amin((1, 2), keepdim=True), inverse.amax((1, 2), keepdim=True)
        # An image of one depth has no contrast to stretch: it stays black.
        unit = torch.where(high > low * (1 + 1e-9), (inverse - low) / (high - low).clamp_min(1e-300), 0.0)
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
