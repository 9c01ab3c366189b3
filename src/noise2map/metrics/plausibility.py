"""Plausibility of an image's geometry, without a reference: planes, edges, and two depth maps that should agree."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.metrics.per_image import PerImageMetric

PLAUSIBILITY_SCORES = ("disagreement", "correlation", "planarity_residual", "planar_share", "edge_alignment")
PLANAR = 0.01  # a patch is planar whose inverse depth departs from a plane by less than this share of itself, else it holds an edge
_WINDOW = 5


def depth_disagreement(strong: Tensor, weak: Tensor) -> Tensor:
    """Mean absolute difference of two depth signals of an image, as a share of the range [-1, 1].

    Args:
        strong: Signals `(B, ..., h, w)`, nominally in [-1, 1].
        weak: The same shape.

    Returns:
        `(B,)`: 0 where they are equal, 1 where one is at the nearest and the other at the farthest depth.

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(strong, weak)
    return (strong.double() - weak.double()).flatten(1).abs().mean(1) / 2


def depth_correlation(strong: Tensor, weak: Tensor) -> Tensor:
    """Pearson correlation over the pixels of an image `(B, ..., h, w) -> (B,)`; NaN where one of the two is constant.

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(strong, weak)
    a, b = (x.double().flatten(1) - x.double().flatten(1).mean(1, keepdim=True) for x in (strong, weak))
    # Constant maps leave rounding behind, not zero.
    sizes = [x.norm(dim=1) for x in (a, b)]
    scale = [x.double().flatten(1).norm(dim=1) * 1e-12 for x in (strong, weak)]
    known = (sizes[0] > scale[0]) & (sizes[1] > scale[1])
    return torch.where(known, (a * b).sum(1) / (sizes[0] * sizes[1]).clamp_min(1e-300), torch.nan).clamp(-1, 1)


def _same_shape(strong: Tensor, weak: Tensor) -> None:
    if strong.shape != weak.shape or strong.ndim < 3:
        raise ValueError(f"two readings must have one shape (B, ..., h, w), got {tuple(strong.shape)} and {tuple(weak.shape)}")


def plane_residual(depth: Tensor, window: int = _WINDOW) -> Tensor:
    """Distance of the depth around each pixel from a plane.

    The inverse depth of a plane is linear in the pixel coordinates of any pinhole camera, so a least-squares fit of a linear
    function to the inverse depth of a patch is a fit of a plane, whatever the focal length, slant and scale.

    Args:
        depth: `(B, H, W)`, in any unit; 0 or anything not finite means unknown.
        window: Side of the patches, pixels, odd.

    Returns:
        `(B, H - window + 1, W - window + 1)` float64: root mean square of the residual divided by the mean inverse depth of the
        patch; NaN where a pixel of the patch is unknown.

    Raises:
        ValueError: If the window is even, smaller than 3 or larger than the map.
    """
    if window < 3 or window % 2 == 0 or depth.ndim != 3 or window > min(depth.shape[-2:]):
        raise ValueError(f"window must be odd, at least 3, and fit into depth (B, H, W), got {window} for {tuple(depth.shape)}")
    return patch_planes(inverse_depth(depth), window).residual


def inverse_depth(depth: Tensor, far: float | None = None) -> Tensor:
    """Inverse depth `(B, H, W)` float64; NaN where depth is 0, not finite, or `far` and more."""
    known = torch.isfinite(depth) & (depth > 0)
    if far is not None:
        known = known & (depth < far)
    return torch.where(known, 1 / torch.where(known, depth, 1).double(), torch.nan)


class PatchPlanes(NamedTuple):
    """Least-squares planes of patches of inverse depth, each `(B, H - window + 1, W - window + 1)` float64, NaN where unknown.

    Attributes:
        mean: Inverse depth in the middle.
        across: Change of the inverse depth for a pixel to the right.
        down: For a pixel downwards.
        residual: Root mean square of what the plane leaves, divided by `mean`.
    """

    mean: Tensor
    across: Tensor
    down: Tensor
    residual: Tensor


def patch_planes(inverse: Tensor, window: int) -> PatchPlanes:
    """Fit of a linear function to the inverse depth `(B, H, W)` of each patch of `window` x `window` pixels, an odd number."""
    patches = functional.unfold(inverse[:, None], window)  # (B, window², L)
    steps = torch.arange(window, dtype=torch.float64, device=inverse.device) - window // 2
    mean = patches.mean(1, keepdim=True)
    rest = patches - mean
    slopes = []
    for axis in (steps.repeat(window), steps.repeat_interleave(window)):  # across, down
        # Orthogonal to each other and to the constant: fitted one after the other.
        slopes.append((axis @ rest) / axis.square().sum())
        rest = rest - axis[:, None] * slopes[-1][:, None]
    residual = rest.square().mean(1).sqrt() / mean[:, 0]
    shape = (len(inverse), inverse.shape[1] - window + 1, inverse.shape[2] - window + 1)
    return PatchPlanes(*(one.reshape(shape) for one in (mean[:, 0], *slopes, residual)))


def image_edges(images: Tensor) -> Tensor:
    """Strength of the edges of images `(B, 3, H, W)` uint8: largest difference to a neighbour, over channels, `(B, H, W)`."""
    values = images.double()
    padded = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    high = functional.max_pool2d(padded, 3, 1)
    low = -functional.max_pool2d(-padded, 3, 1)
    return torch.maximum(high - values, values - low).amax(1)


def edge_alignment(images: Tensor, depth: Tensor, window: int = _WINDOW) -> Tensor:
    """AUROC of image edges for depth edges: 1 if the edges of the depth lie on edges of the image.

    An occlusion nearly always shows in the image, while an image has many edges that are paint. So the question is one-sided:
    the probability that a pixel at an edge of the geometry sees a stronger edge in the image than a pixel inside a surface
    (area under the ROC curve, ties half). An edge of the geometry is where the inverse depth departs from a plane by more
    than 1 %; a floor that runs to the horizon has none. (At 5 %, where true depth has most of its edges, networks' depth has
    hardly any: it is smooth.)

    Args:
        images: `(B, 3, H, W)` uint8.
        depth: `(B, H, W)`, in any unit, 0 unknown.
        window: Side of the patches, pixels, odd; edges of the image are looked for within the patch.

    Returns:
        `(B,)` in 0..1, 0.5 for chance; NaN for an image without such edges (or with nothing else).

    Raises:
        ValueError: If the sizes differ, or as in :func:`plane_residual`.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2:] != depth.shape[1:] or len(images) != len(depth):
        raise ValueError(f"images (B, 3, H, W) and depth (B, H, W) must fit, got {tuple(images.shape)} and {tuple(depth.shape)}")
    residual = plane_residual(depth, window)
    strength = functional.max_pool2d(image_edges(images)[:, None], window, 1)[:, 0]
    scores = []
    for geometry, edges in zip(residual, strength):
        known = ~geometry.isnan()
        scores.append(_auroc(edges[known], geometry[known] >= PLANAR))
    return torch.stack(scores)


def _auroc(values: Tensor, positive: Tensor) -> Tensor:
    """Probability that a positive has the larger value, ties half; NaN without positives or negatives."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return values.new_full((), torch.nan)
    levels, place = torch.unique(values, return_inverse=True)
    counts = torch.zeros(2, len(levels), dtype=torch.float64, device=values.device)
    counts[0].index_add_(0, place[~positive], torch.ones(negatives, dtype=torch.float64, device=values.device))
    counts[1].index_add_(0, place[positive], torch.ones(positives, dtype=torch.float64, device=values.device))
    below = counts[0].cumsum(0) - counts[0]
    return ((below + counts[0] / 2) * counts[1]).sum() / (positives * negatives)


class PlausibilityScores(PerImageMetric):
    """Geometric plausibility of images, averaged over images; undefined values are left out of a mean.

    No single one of the scores is a verdict: a wall that fills the image is perfectly planar. Compare them with those of
    real images of the same kind.

    Args:
        window: Side of the patches of planes and edges, pixels, odd.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, window: int = _WINDOW, **kwargs: Any) -> None:
        super().__init__((len(PLAUSIBILITY_SCORES),), torch.float64, True, **kwargs)
        self.window = window

    def update(self, images: Tensor, depth: Tensor, strong: Tensor | None = None, weak: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            images: `(B, 3, H, W)` uint8.
            depth: `(B, H, W)` from a depth estimator, in any unit; 0 unknown.
            strong: Depth signal of the strong branch `(B, 1, h, w)`, nominally in [-1, 1].
            weak: Of the weak branch.

        Raises:
            ValueError: If shapes do not fit, or one of the two readings is missing.
        """
        if (strong is None) != (weak is None):
            raise ValueError("strong and weak depth must be given together")
        alignment = edge_alignment(images, depth, self.window)
        residual = plane_residual(depth, self.window).flatten(1)
        unknown = residual.isnan()
        planar = torch.where(unknown, torch.nan, (residual < PLANAR).double()).nanmean(1)
        nothing = torch.full_like(alignment, torch.nan)
        readings = [nothing, nothing] if strong is None or weak is None else [
            depth_disagreement(strong, weak), depth_correlation(strong, weak)
        ]  # fmt: skip
        columns = [*readings, residual.nanmedian(1).values, planar, alignment]
        self._keep(torch.stack([column.to(self.device) for column in columns], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Means over images by the names of `PLAUSIBILITY_SCORES`, scalars in float64."""
        return dict(zip(PLAUSIBILITY_SCORES, self.per_image().nanmean(0)))
