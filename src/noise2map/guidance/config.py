"""Configuration of guidance: which losses guide, how strongly, in which steps, and what a scale means."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from noise2map.guidance.depth_predictor import DepthPredictor
from noise2map.guidance.depth_prior import PriorLoss, TauRule
from noise2map.guidance.losses import REDUCTIONS, ConsistencyLoss, GuidanceLoss
from noise2map.guidance.placebos import PLACEBOS
from noise2map.guidance.scheduler_step import CONVENTIONS, check_integer

NONFINITE = ("error", "skip")
# What a call of the pipeline calls an argument -> what `GuidanceConfig.from_scales` does.
CALL_KEYWORDS = {name: name for name in ("consistency_scale", "prior_scale", "prior_timesteps", "convention", "reduction")}
CALL_KEYWORDS |= {name: name for name in ("strong_blocks", "weak_blocks", "on_nonfinite")}
CALL_KEYWORDS |= {f"guidance_{name}": name for name in ("start", "end", "every", "log_snr")}


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """All that decides how a run is guided.

    ```python
    guidance = GuidanceConfig.from_scales(consistency_scale=40.0, prior_scale=40.0, every=2)
    guidance = GuidanceConfig(losses=(ConsistencyLoss(40.0), PriorLoss(40.0)), every=2)  # the same
    out = pipe(batch_size=4, guidance=guidance)
    ```

    Attributes:
        losses: what guides; a loss of scale 0 does not. Any `GuidanceLoss`.
        convention: ``"variance"`` (classifier guidance: times the step's variance) or ``"plain"`` (added to the mean as it is),
            see `noise2map.guidance.scheduler_step`; None for the pipeline's own.
        reduction: of the losses over pixels, ``"sum"`` (as the paper prints them) or ``"mean"``; None for the pipeline's own.
        strong_blocks: the predictor's branch taken as strong, by its blocks; None for its own.
        weak_blocks: the branch taken as weak; None for its own.
        start: first guided step.
        end: step before which guidance ends; None for all.
        every: guide every so many steps, from the first.
        log_snr: range ``(low, high)`` of the log signal-to-noise ratio of the steps that are guided, high excluded; infinite ends
            are allowed. Holds for every schedule. None for all that the predictor can read, from its ``min_log_snr`` on.
        placebo: what takes the place of the gradient, see `noise2map.guidance.placebos.placebo_gradient`: a control. None for the
            gradient itself.
        on_nonfinite: ``"error"``, or ``"skip"`` to leave an image unguided in a step whose gradient is not finite.
    """

    losses: Sequence[GuidanceLoss] = ()
    convention: str | None = None
    reduction: str | None = None
    strong_blocks: Sequence[int] | None = None
    weak_blocks: Sequence[int] | None = None
    start: int = 0
    end: int | None = None
    every: int = 1
    log_snr: Sequence[float] | None = None
    placebo: str | None = None
    on_nonfinite: str = "error"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value that is impossible.
        """
        object.__setattr__(self, "losses", tuple(self.losses))
        for loss in self.losses:
            if not isinstance(loss, GuidanceLoss):
                raise ValueError(f"losses hold a {type(loss).__name__}; expected objects of GuidanceLoss")
        names = [loss.name for loss in self.losses]
        if len(set(names)) != len(names):
            raise ValueError(f"losses are called {', '.join(names)}; expected different names")
        for name, value, known in (("convention", self.convention, CONVENTIONS), ("reduction", self.reduction, REDUCTIONS)):
            if value is not None and value not in known:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, known))}")
        if self.on_nonfinite not in NONFINITE:
            raise ValueError(f"on_nonfinite is {self.on_nonfinite!r}; expected 'error' or 'skip'")
        if self.placebo is not None and self.placebo not in PLACEBOS:
            raise ValueError(f"placebo is {self.placebo!r}; expected one of {', '.join(PLACEBOS)}")
        check_integer("guidance_every", self.every, 1, None)
        check_integer("guidance_start", self.start, 0, None)
        if self.end is not None:
            check_integer("guidance_end", self.end, self.start, None)
        span = self.log_snr
        if span is not None and (len(span) != 2 or not span[0] < span[1]):
            raise ValueError(f"guidance_log_snr is {span}; expected (low, high) with low < high, such as (-6.5, 2)")

    @classmethod
    def from_scales(
        cls, consistency_scale: float = 0.0, prior_scale: float = 0.0, prior_timesteps: TauRule = "uniform", **options: Any
    ) -> "GuidanceConfig":
        """The two losses of DAG by their scales.

        Args:
            consistency_scale: weight of `ConsistencyLoss`.
            prior_scale: weight of `PriorLoss`.
            prior_timesteps: how the prior's time steps are drawn, see `noise2map.guidance.depth_prior.draw_tau`.
            **options: the other attributes.
        """
        return cls(losses=(ConsistencyLoss(consistency_scale), PriorLoss(prior_scale, timesteps=prior_timesteps)), **options)

    @property
    def active(self) -> tuple[GuidanceLoss, ...]:
        """The losses that guide: those with a scale above 0."""
        return tuple(loss for loss in self.losses if loss.scale > 0)

    @property
    def modules(self) -> Iterator[nn.Module]:
        """Networks of the losses that guide."""
        return (module for loss in self.active for module in loss.modules)

    def guides(self, index: int, log_snr: float, num_inference_steps: int, predictor: DepthPredictor) -> bool:
        """True if the step of this index, at this log signal-to-noise ratio, is guided; the predictor may be missing if none is."""
        if not self.active:
            return False
        end = num_inference_steps if self.end is None else self.end
        low, high = self.log_snr or (predictor.config.min_log_snr, math.inf)
        in_turn = self.start <= index < end and (index - self.start) % self.every == 0
        return in_turn and low <= log_snr < high

    def bound(
        self, *, convention: str = "variance", reduction: str = "sum", pipe_parts: Mapping[str, Any] | None = None
    ) -> "GuidanceConfig":
        """The configuration with nothing left open: what a pipeline decides is filled in.

        Args:
            convention: of the pipeline, where the configuration says none.
            reduction: likewise, also where a loss says none.
            pipe_parts: ``depth_predictor`` and ``depth_prior`` of the pipeline; losses that do not guide are left out with it.

        Raises:
            ValueError: if a loss needs a part that is missing.
        """
        reduction = self.reduction or reduction
        losses = [replace(loss, reduction=loss.reduction or reduction) for loss in self.losses]
        if pipe_parts is not None:
            losses = [loss.bound(pipe_parts) for loss in losses if loss.scale > 0]
        return replace(self, losses=losses, convention=self.convention or convention, reduction=reduction)

    def branches(self, predictor: DepthPredictor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks of the strong and of the weak branch.

        Raises:
            ValueError: if the predictor lacks one of them, or they are the same.
        """
        strong = predictor.branch(self.strong_blocks)
        weak = predictor.weak_blocks if self.weak_blocks is None else predictor.branch(self.weak_blocks)
        if strong == weak:
            raise ValueError(f"the strong and the weak branch both read blocks {strong}; expected different ones")
        return strong, weak
