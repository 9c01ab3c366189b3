"""What the map models return."""

from dataclasses import dataclass, field

from torch import Tensor
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput

from noise2map.diffusion.sampling import Step


@dataclass
class MapSegmenterOutput(SemanticSegmenterOutput):
    """Segmentation output.

    Attributes:
        loss: training loss, if labels were given.
        logits: ``(B, K, h, w)``; with ``average="steps"`` the log of the averaged probabilities.
        uncertainty: the configured kind, ``(B, h, w)`` in [0, 1]; `None` where it is not defined.
        uncertainties: every kind that is defined for the run, by name.
        num_steps: decoder calls that each image took, ``(B,)``.
        steps: the run's `Step` objects, if asked for; their tensors have the images' samples folded into the batch ``(B*R, ...)``.
        log_probabilities: True where the logits are logarithms of averaged probabilities, which are resized as probabilities.
    """

    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        return self.logits


@dataclass
class MapDepthOutput(DepthEstimatorOutput):
    """Depth output: ``predicted_depth`` in metres ``(B, h, w)``; the rest as in `MapSegmenterOutput`."""

    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        return self.predicted_depth.unsqueeze(1)
