"""Scorers: what collects the scores of one protocol, whatever the task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noise2map import metrics

# Floats of class probabilities at full size that are held at a time.
_CHUNK_FLOATS = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Options of scoring: which pixels count and how; each task takes what concerns it.

    Attributes:
        depth_range_m: Where depth is scored, metres; the model's own range where it is not given.
        farthest_m: Predicted depths beyond are set to this, metres; the model's own limit where it is not given.
        temperature_images: If not 0, the number of images to come: fit the temperature of class scores.
        without_probabilities: Class maps come as ids, without a score for each class.
        sample_scores: Also score the single samples of an ensemble.
        layer_thresholds: Probability from which each layer of a bird's-eye view is shown, to be scored at, too; None for none.
    """

    depth_range_m: tuple[float, float] | None = None
    farthest_m: float | None = None
    temperature_images: int = 0
    without_probabilities: bool = False
    sample_scores: bool = False
    layer_thresholds: Sequence[float] | None = None


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
        self.uncertainties: dict[str, metrics.UncertaintyScores] = {}
        self.uncertainty_order: dict[str, list[int]] = {}
        # Scores that are ratios of sums, by the prefix of their names: of samples (none) and of a predicted scale.
        self.sums: dict[str, metrics.samples.RowSums] = {}
        self.sums_order: dict[str, list[int]] = {}
        self.sample_scores = False

    def with_options(self, options: ScoringOptions) -> "Scorer":
        """This scorer with what all tasks take of the options."""
        self.sample_scores = options.sample_scores
        return self

    @abstractmethod
    def masked(self, truth: Tensor, region: Tensor) -> Tensor:
        """A true map ``(..., H, W)`` that counts in a region ``(H, W)`` alone, bool."""

    @abstractmethod
    def update(self, output: Any, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            processed: Height and width that went into the model.
            indices: Place of each image in the dataset.
            truths: True map of each image.
        """

    def _score_uncertainties(
        self, kinds: dict[str, Tensor], error: Tensor, wrong: Tensor, valid: Tensor, indices: Sequence[int]
    ) -> None:
        for name, value in kinds.items():
            if name not in self.uncertainties:
                self.uncertainties[name] = metrics.UncertaintyScores(self.error_kind).to(self.device)
                self.uncertainty_order[name] = []
            self.uncertainties[name].update(value, error, wrong, valid)
            self.uncertainty_order[name] += indices

    def _add_sums(self, prefix: str, make: "Callable[[], metrics.samples.RowSums]", indices: Sequence[int], *maps: Any) -> None:
        if prefix not in self.sums:
            self.sums[prefix] = make().to(self.device)
            self.sums_order[prefix] = []
        self.sums[prefix].update(*maps)
        self.sums_order[prefix] += indices

    def sums_rows(self, prefix: str) -> Tensor:
        """Sums and weights `(N, T, 2)` of every image, in the order of the dataset."""
        return sort_rows(self.sums[prefix].per_image().cpu(), self.sums_order[prefix])

    error_kind: Any

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores of the maps by name."""

    @abstractmethod
    def image_rows(self) -> Tensor:
        """Rows that the bootstrap resamples, `(N, ...)`, in the order of the dataset."""

    @abstractmethod
    def image_scores(self) -> dict[str, Tensor]:
        """Scores of every image by name, `(N,)` each, in the order of the dataset."""

    def statistic(self) -> Callable[[Tensor], Tensor]:
        """Maps `image_rows` to the values of `statistics`."""
        return metrics.nan_mean

    def extras(self) -> dict[str, Any]:
        """Results that do not fit into a row of a table."""
        return {}

    def uncertainty_rows(self, name: str) -> Tensor:
        """Scores `(N, 12)` of one kind of uncertainty for every image, in the order of the dataset."""
        return sort_rows(self.uncertainties[name].per_image().cpu(), self.uncertainty_order[name])


class ImageScorer(Scorer):
    """Scores maps of images, which may be of any size: predictions are resized to that of the truth."""

    def update(self, output: Any, processed: tuple[int, int], indices: Sequence[int], truths: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            output: What `decode_map` gave for B images.
            processed: Height and width that went into the model.
            indices: Place of each image in the dataset.
            truths: True map `(..., H, W)` of each image; sizes may differ.
        """
        # A checkpoint may ask for too much memory at once: images of one size go together, in chunks.
        for part, size in self._parts(output, [tuple(truth.shape[-2:]) for truth in truths]):
            truth = torch.stack([truths[i] for i in part]).to(self.device)
            kinds = {name: value.to(self.device) for name, value in output.uncertainties_at(processed, size, rows=part).items()}
            chosen = [indices[i] for i in part]
            self.order += chosen
            self.steps += [int(output.num_steps[i]) for i in part]
            self._update(self._prediction(output, part, processed, size), truth, kinds, chosen)
            self._update_distribution(output, part, processed, size, truth, chosen)
            if self.sample_scores:
                self._update_samples(single_samples(output)[part], processed, size, truth, chosen)

    def _parts(self, output: Any, sizes: list[Any]) -> Iterator[tuple[list[int], tuple[int, int]]]:
        for size in dict.fromkeys(sizes):
            members = [i for i, one in enumerate(sizes) if one == size]
            room = max(1, _CHUNK_FLOATS // (self._channels(output) * size[0] * size[1]))
            for start in range(0, len(members), room):
                yield members[start : start + room], size

    def _channels(self, output: Any) -> int:
        return output.prediction.shape[1]

    @abstractmethod
    def _prediction(self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int]) -> Tensor: ...

    @abstractmethod
    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None: ...

    def _update_distribution(
        self, output: Any, part: list[int], processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        """Scores the distribution that the output states, where it states one."""

    @abstractmethod
    def _update_samples(
        self, samples: Tensor, processed: tuple[int, int], size: tuple[int, int], truth: Tensor, indices: list[int]
    ) -> None:
        """Scores single samples ``(B, R, K, h, w)``, as predictions are, against truths of one size."""


def single_samples(output: Any) -> Tensor:
    """The samples of an output ``(B, R, K, h, w)``, as its prediction is; the prediction itself where it has none."""
    samples = getattr(output, "samples", None)
    return output.prediction[:, None] if samples is None else samples


def sort_rows(rows: Tensor, order: list[int]) -> Tensor:
    """Rows `(N, ...)` that came in some order of images, in the order of the dataset."""
    return rows[torch.tensor(order).argsort()]


def as_floats(scores: dict[str, Tensor]) -> dict[str, float]:
    """The scalar scores as Python numbers."""
    return {name: float(value) for name, value in scores.items() if value.ndim == 0}


def scoring_device(model: Any) -> torch.device:
    """Where maps of a model are scored: scores are summed in double precision, which MPS does not have."""
    return torch.device("cpu") if model.device.type == "mps" else model.device
