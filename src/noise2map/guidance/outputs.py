"""What a run of the pipeline gives: images, depth and losses, and what a callback is given of each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from noise2map.guidance.config import GuidanceConfig
from noise2map.guidance.gradient import GuidedPrediction
from noise2map.guidance.scheduler_step import GuidedStep


@dataclass
class DepthGuidedPipelineOutput(BaseOutput):
    """Output of a run.

    Attributes:
        images: PIL images, or an array ``(B, H, W, C)``, or a tensor ``(B, C, H, W)``, in [0, 1].
        depths: depth that the strong branch reads at the last step, an array (a tensor for ``output_type="pt"``) ``(B, H,
            W)``, in metres if the predictor is metric, else in [0, 1]; None unless ``output_depth``.
        losses: loss name -> its value before each step, unscaled, ``(steps, B)`` on the CPU; NaN where a step was not guided.
        skipped: number of steps of each image that were left unguided because the gradient was not finite, ``(B,)``.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    depths: np.ndarray | Tensor | None = None
    losses: dict[str, Tensor] | None = None
    skipped: Tensor | None = None


@dataclass
class SamplingRun:
    """What is kept while a run goes on: of each step only what is small.

    Attributes:
        sample: images as the newest step left them ``(B, C, H, W)``.
        depth_signal: what the strong branch read at the newest step, ``(B, 1, H, W)``; None if it did not.
        log: losses of each step by name, ``(B,)`` each, and which images were left unguided.
    """

    sample: Tensor
    depth_signal: Tensor | None = None
    log: list[tuple[dict[str, Tensor], Tensor | None]] = field(default_factory=list)

    def add(self, prediction: GuidedPrediction, step: GuidedStep) -> None:
        """Takes a step."""
        self.log.append((prediction.losses, prediction.skipped))
        self.sample, self.depth_signal = step.prev_sample, prediction.depth_signal

    def collected(self, guidance: GuidanceConfig) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of all steps, ``(steps, B)`` by name, and skipped steps of each image ``(B,)``, on the CPU."""
        batch_size = len(self.sample)
        missing = torch.full((batch_size,), float("nan"))
        values = {
            loss.name: torch.stack([found[loss.name].float().cpu() if loss.name in found else missing for found, _ in self.log])
            for loss in guidance.active
        }
        skips = [skipped.long().cpu() for _, skipped in self.log if skipped is not None]
        return values, sum(skips, torch.zeros(batch_size, dtype=torch.long))


@dataclass(frozen=True)
class StepCallback:
    """What is called after each step.

    Attributes:
        function: as in other pipelines; None for nothing.
        names: of the tensors that it is given.
    """

    function: Callable[..., dict[str, Any]] | None
    names: Sequence[str]

    def after(self, pipe: Any, index: int, prediction: GuidedPrediction, step: GuidedStep) -> None:
        """Calls the function after a step; ``latents`` that it returns replace the step's."""
        if self.function is None:
            return
        tensors = {
            "latents": step.prev_sample,
            "gradient": prediction.gradient,
            "pred_original_sample": step.pred_original_sample,
            "depth_signal": prediction.depth_signal,
        }
        given = {name: tensors[name] for name in self.names}
        returned = self.function(pipe, index, pipe.scheduler.timesteps[index], given) or {}
        step.prev_sample = returned.get("latents", step.prev_sample)
