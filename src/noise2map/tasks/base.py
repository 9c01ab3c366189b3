"""What every task of maps has: truth of a sample, scores of a batch, and the base of its scorer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from noise2map.metrics import BevScores, DepthScores, SegmentationScores, UncertaintyScores, nan_mean

# Floats of class probabilities at full size that are held at a time.
_CHUNK_FLOATS = 16 * 2**20


def resize_bilinear(maps: Tensor, *sizes: tuple[int, int]) -> Tensor:
    """Resize maps `(B, C, h, w)` to one size after the other, bilinearly with half-pixel centres."""
    for size in sizes:
        if maps.shape[-2:] != size:
            maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps


class Scorer(ABC):
    """Collects the scores of one protocol.

    Images may come in any order and with maps of any size; `order` remembers which row belongs to which image.
    """

    # The statistics that get confidence intervals, by name.
    statistics: tuple[str, ...]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.order: list[int] = []
        self.steps: list[int] = []
        self.uncertainties: dict[str, UncertaintyScores] = {}
        self.uncertainty_order: dict[str, list[int]] = {}

    @abstractmethod
    def update(
        self, output: Any, average: str, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]
    ) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            average: `"last"` or `"steps"`: whether the logits are logarithms of averaged probabilities.
            processed: Height and width that went into the model.
            indices: Place of each image in the data set.
            truths: True map of each image.
        """

    def _score_uncertainties(
        self, kinds: dict[str, Tensor], error: Tensor, wrong: Tensor, valid: Tensor, indices: Sequence[int]
    ) -> None:
        for name, value in kinds.items():
            if name not in self.uncertainties:
                self.uncertainties[name] = UncertaintyScores(self.error_kind).to(self.device)
                self.uncertainty_order[name] = []
            self.uncertainties[name].update(value, error, wrong, valid)
            self.uncertainty_order[name] += indices

    error_kind: Any

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores of the maps by name."""

    @abstractmethod
    def image_rows(self) -> Tensor:
        """What the bootstrap resamples, `(N, ...)`, in the order of the data set."""

    @abstractmethod
    def image_scores(self) -> dict[str, Tensor]:
        """Scores of every image by name, `(N,)` each, in the order of the data set."""

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """Maps `image_rows` to the values of `statistics`."""
        return nan_mean

    def extras(self) -> dict[str, Any]:
        """What does not fit into a row of a table."""
        return {}

    def uncertainty_rows(self, name: str) -> Tensor:
        """Scores `(N, 12)` of one kind of uncertainty for every image, in the order of the data set."""
        return sort_rows(self.uncertainties[name].per_image().cpu(), self.uncertainty_order[name])


class ImageScorer(Scorer):
    """Scores maps of images, which may be of any size: predictions are resized to that of the truth."""

    def update(
        self, output: Any, average: str, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]
    ) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            average: `"last"` or `"steps"`: whether the logits are logarithms of averaged probabilities.
            processed: Height and width that went into the model.
            indices: Place of each image in the data set.
            truths: True map `(H, W)` of each image; sizes may differ.
        """
        # A checkpoint may ask for too much memory at once: images of one size go together, in chunks.
        for part, size in self._parts(output, [tuple(truth.shape) for truth in truths]):
            truth = torch.stack([truths[i] for i in part]).to(self.device)
            kinds = {
                name: resize_bilinear(value[part, None].float(), processed, size)[:, 0].clamp(0, 1).to(self.device)
                for name, value in (output.uncertainties or {}).items()
            }
            chosen = [indices[i] for i in part]
            self.order += chosen
            self.steps += [int(output.num_steps[i]) for i in part]
            self._update(self._prediction(output, part, average, processed, size), truth, kinds, chosen)

    def _parts(self, output: Any, sizes: list[Any]) -> Iterator[tuple[list[int], tuple[int, int]]]:
        for size in dict.fromkeys(sizes):
            members = [i for i, one in enumerate(sizes) if one == size]
            room = max(1, _CHUNK_FLOATS // (self._channels(output) * size[0] * size[1]))
            for start in range(0, len(members), room):
                yield members[start : start + room], size

    @abstractmethod
    def _channels(self, output: Any) -> int: ...

    @abstractmethod
    def _prediction(
        self, output: Any, part: list[int], average: str, processed: tuple[int, int], size: tuple[int, int]
    ) -> Tensor: ...

    @abstractmethod
    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None: ...


def sort_rows(rows: Tensor, order: list[int]) -> Tensor:
    """Rows `(N, ...)` that came in some order of images, in the order of the data set."""
    return rows[torch.tensor(order).argsort()]


def as_floats(scores: dict[str, Tensor]) -> dict[str, float]:
    """The scalar scores as Python numbers."""
    return {name: float(value) for name, value in scores.items() if value.ndim == 0}


def task_of(model: nn.Module) -> str:
    """``"segmentation"``, ``"depth"`` or ``"bev"``: what the model's ``task`` attribute or class name says.

    Raises:
        ValueError: if neither names a task.
    """
    task = getattr(model, "task", None)
    if task is None:
        name = type(model).__name__
        task = "bev" if "Bev" in name else "depth" if "Depth" in name else "segmentation" if "Segmentation" in name else None
    if task not in ("segmentation", "depth", "bev"):
        raise ValueError(f"{type(model).__name__} is neither a segmentation nor a depth nor a bev model; expected one of them")
    return task


def make_scores(model: nn.Module, task: str) -> Metric:
    """An empty metric with the model's classes or depth range; a few numbers whatever the size of the data set."""
    config = model.config
    if task == "segmentation":
        ignore = config.semantic_loss_ignore_index
        return SegmentationScores(config.num_labels, ignore_index=ignore, keep_per_image=False)
    if task == "bev":
        return BevScores(config.num_labels)
    return DepthScores(config.min_depth, config.max_depth, keep_per_image=False)


def predict_maps(outputs: Any, processor: Any, task: str, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Model outputs to class ids or metres ``(H, W)`` at each picture's own size, on the CPU."""
    if task == "segmentation":
        return [labels.cpu() for labels in processor.post_process_semantic_segmentation(outputs, target_sizes=list(sizes))]
    depths = processor.post_process_depth_estimation(outputs, target_sizes=list(sizes))
    return [entry["predicted_depth"].float().cpu() for entry in depths]


def true_map(sample: dict[str, Any], task: str) -> Tensor:
    """The true map ``(H, W)`` of a raw sample: class ids int64, or metres float32 with 0 where invalid."""
    if task == "segmentation":
        return torch.from_numpy(np.asarray(sample["labels"]).astype(np.int64))
    depth_m = np.asarray(sample["depth_m"], dtype=np.float32)
    if "valid" in sample:
        depth_m = np.where(sample["valid"], depth_m, np.float32(0))
    return torch.from_numpy(np.ascontiguousarray(depth_m))


@dataclass
class Prediction:
    """The map of one image, at the size of the image.

    Attributes:
        id: The id of the image.
        labels: Class ids ``(H, W)`` uint8 or uint16, for segmentation.
        depth_m: Metres ``(H, W)`` float32, for depth.
        uncertainty: ``(H, W)`` float32 in [0, 1]; None where it is not defined (one step of one sample of depth).
        uncertainty_kind: ``"entropy"``, ``"step_flip"``, ``"sample_variance"`` or ``"mutual_information"``.
        uncertainties: Every kind that is defined for the run, by name, if they were asked for.
        num_steps: Decoder calls that were made for it.
        processed_size: Width and height at which the model saw the image.
    """

    id: str
    labels: np.ndarray | None
    depth_m: np.ndarray | None
    uncertainty: np.ndarray | None
    uncertainty_kind: str
    num_steps: int
    processed_size: tuple[int, int]
    uncertainties: dict[str, np.ndarray] = field(default_factory=dict)
