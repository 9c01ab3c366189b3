"""Guidance losses of DAG, one value for each image: pure functions, and the objects that guide (arXiv 2212.08861, Sec. 3.3).

The sum over pixels is the squared norm that the paper prints; the mean does not change with the resolution. A guidance scale
is meaningful for one of them only. There is no reduction over the batch: the gradient of an image must not depend on how many
others there are.

What guides a run is a list of `GuidanceLoss` objects. A further one is a class of its own:

```python
@dataclass(frozen=True)
class FlatFloor(GuidanceLoss):
    name = "floor"

    def blocks_needed(self, strong, weak):
        return strong

    def __call__(self, features, depth, generators):
        return depth.strong[:, :, -8:].var((1, 2, 3))

pipe(guidance=GuidanceConfig(losses=(FlatFloor(10.0),)))
```
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from noise2map.diffusion.process import add_noise
from noise2map.guidance.depth_predictor import DepthPredictor

REDUCTIONS = ("sum", "mean")
PULLS = ("hinge", "square")


def consistency_loss(strong: Tensor, weak: Tensor, reduction: str = "sum") -> Tensor:
    """Depth consistency ``L_dc = || stopgrad(d_strong) - d_weak ||²``.

    The weak reading is drawn towards the strong one, never the other way round: no gradient flows through ``strong``.

    Args:
        strong: depth signal of the strong branch, ``(B, 1, h, w)``.
        weak: depth signal of the weak branch, same shape.
        reduction: over pixels, ``"sum"`` or ``"mean"``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    if strong.shape != weak.shape:
        raise ValueError(f"strong depth has shape {tuple(strong.shape)} and weak depth {tuple(weak.shape)}; expected the same")
    return reduce_pixels((strong.detach() - weak).square(), reduction)


def prior_loss(
    depth: Tensor,
    denoise: Callable[[Tensor, Tensor], Tensor],
    timesteps: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """Depth prior ``L_dp = || eta - eps_phi(alpha d + sigma eta, tau) ||²``: how surprising a diffusion model of depth maps
    finds the depth.

    Args:
        depth: depth signal in ``[-1, 1]``, ``(B, 1, h, w)``, at the prior's resolution.
        denoise: the prior, ``(noisy (B, 1, h, w), timesteps (B,)) -> noise (B, 1, h, w)``.
        timesteps: ``tau`` of each image, integers ``(B,)``.
        alpha: the prior's signal level at ``tau``, ``(B,)``.
        sigma: its noise level, ``(B,)``.
        noise: ``eta``, standard normal ``(B, 1, h, w)``.
        reduction: over pixels, ``"sum"`` or ``"mean"``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    predicted = denoise(add_noise(depth, noise, alpha, sigma), timesteps)
    if predicted.shape != noise.shape:
        raise ValueError(f"the prior predicts noise of shape {tuple(predicted.shape)}; expected {tuple(noise.shape)}")
    return reduce_pixels((noise - predicted).square(), reduction)


def reduce_pixels(values: Tensor, reduction: str) -> Tensor:
    """Sum or mean of ``(B, ...)`` over all axes but the first, ``(B,)``, in float32 at least.

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected 'sum' or 'mean'")
    flat = values.flatten(1).to(torch.promote_types(values.dtype, torch.float32))
    return flat.sum(1) if reduction == "sum" else flat.mean(1)


class StepDepth:
    """Depth of one step, read from the U-Net's features when a loss asks for it, each branch once.

    Args:
        predictor: the depth predictor.
        features: block index -> activation ``(B, C(k), H(k), W(k))``.
        timestep: the image's time step.
        image_steps: number of time steps of the image's process.
        branches: blocks of the strong and of the weak branch.
        size: height and width of the images in px.
        differentiable: sets of blocks through which some loss is differentiated; other branches are read without a graph.

    Attributes:
        timestep: the image's time step.
        image_steps: number of time steps of the image's process.
    """

    def __init__(
        self,
        predictor: DepthPredictor,
        features: Mapping[int, Tensor],
        timestep: int,
        image_steps: int,
        branches: tuple[tuple[int, ...], tuple[int, ...]],
        size: tuple[int, int],
        differentiable: Sequence[Sequence[int]] = (),
    ) -> None:
        self.timestep, self.image_steps = timestep, image_steps
        self._predictor, self._features, self._size = predictor, features, size
        self._branches, self._differentiable = branches, [set(blocks) for blocks in differentiable]
        self._read: dict[tuple[int, ...], Tensor] = {}

    @property
    def strong(self) -> Tensor:
        """Depth signal of the strong branch, ``(B, 1, H, W)``."""
        return self(self._branches[0])

    @property
    def weak(self) -> Tensor:
        """Depth signal of the weak branch, ``(B, 1, H, W)``."""
        return self(self._branches[1])

    def __call__(self, blocks: Sequence[int]) -> Tensor:
        """Depth signal ``(B, 1, H, W)`` of the branch that reads these blocks.

        Raises:
            ValueError: if the predictor has no such branch.
        """
        branch = self._predictor.branch(blocks)
        if branch not in self._read:
            with torch.set_grad_enabled(any(set(branch) <= needed for needed in self._differentiable)):
                self._read[branch] = self._predictor(self._features, self.timestep, branch, self._size)
        return self._read[branch]


@dataclass(frozen=True)
class GuidanceLoss(ABC):
    """A loss whose gradient to the noisy image guides sampling.

    Attributes:
        scale: weight of the loss; 0 switches it off.
        reduction: over pixels, ``"sum"`` or ``"mean"``; None for that of the configuration.
    """

    name: ClassVar[str]

    scale: float = 0.0
    reduction: str | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value that is impossible.
        """
        scale = self.scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"{self.name}_scale is {scale!r}; expected a finite number, at least 0")
        if self.reduction not in (None, *REDUCTIONS):
            raise ValueError(f"reduction is {self.reduction!r}; expected 'sum' or 'mean'")

    @abstractmethod
    def blocks_needed(self, strong: tuple[int, ...], weak: tuple[int, ...]) -> Sequence[int]:
        """Decoder blocks through which the loss is differentiated, given those of the strong and of the weak branch."""

    @abstractmethod
    def __call__(self, features: Mapping[int, Tensor], depth: StepDepth, generators: Sequence[torch.Generator]) -> Tensor:
        """The loss of each image, ``(B,)``, unscaled.

        Args:
            features: activations of the blocks needed and of the strong branch, ``(B, C(k), H(k), W(k))``.
            depth: depth that the predictor reads from them.
            generators: one for each image, for what the loss draws.
        """

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Networks of the loss; their parameters receive no gradient."""
        return ()

    def bound(self, pipe_parts: Mapping[str, Any]) -> "GuidanceLoss":
        """The loss with what the parts of a pipeline (``depth_predictor``, ``depth_prior``) give it.

        Raises:
            ValueError: if a part is missing.
        """
        return self


@dataclass(frozen=True)
class ConsistencyLoss(GuidanceLoss):
    """Depth consistency: the weak branch's reading is drawn towards the strong one's, see `consistency_loss`.

    As published it draws until both agree. Real images do not make them agree: a weak branch errs. With ``real`` guidance aims at
    the disagreement ``m`` (mean square over pixels) that real images have, ``c``, instead of none (not of the paper).

    Attributes:
        real: what real images disagree by: pairs of an image's time step and the mean square of the difference of both signals, in
            the order of time steps, linear in between and level beyond; `noise2map.generation.depth_reading.real_disagreement`
            measures it. None to draw until both agree.
        pull: with ``real``, ``"hinge"``: ``max(m - c, 0)``, an image that disagrees no more than real ones is left alone;
            ``"square"``: ``(m - c)² / 2c``, one that disagrees less is pushed back.
    """

    name: ClassVar[str] = "consistency"

    real: Sequence[Sequence[float]] | None = None
    pull: str = "hinge"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value that is impossible.
        """
        super().__post_init__()
        if self.pull not in PULLS:
            raise ValueError(f"pull is {self.pull!r}; expected 'hinge' or 'square'")
        if self.real is None:
            return
        pairs = tuple((float(step), float(level)) for step, level in self.real)
        steps = [step for step, _ in pairs]
        if not pairs or steps != sorted(set(steps)) or not all(level > 0 for _, level in pairs):
            raise ValueError(f"real is {pairs}; expected pairs of rising time steps and disagreements above 0")
        object.__setattr__(self, "real", pairs)

    def blocks_needed(self, strong: tuple[int, ...], weak: tuple[int, ...]) -> Sequence[int]:
        """Those of the weak branch."""
        return weak

    def __call__(self, features: Mapping[int, Tensor], depth: StepDepth, generators: Sequence[torch.Generator]) -> Tensor:
        """`consistency_loss` of both branches, ``(B,)``, or its excess over that of real images."""
        reduction = self.reduction or "sum"
        if self.real is None:
            return consistency_loss(depth.strong, depth.weak, reduction)
        found = consistency_loss(depth.strong, depth.weak, "mean")
        steps, levels = zip(*self.real)
        level = float(np.interp(depth.timestep, steps, levels))
        excess = torch.relu(found - level) if self.pull == "hinge" else (found - level).square() / (2 * level)
        return excess * (depth.weak[0].numel() if reduction == "sum" else 1)
