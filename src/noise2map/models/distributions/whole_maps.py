"""Distributions of whole maps of classes or layers, which one call of the decoder states, and how a run reports them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from noise2map.models.aggregation import ProbabilityAggregator, Sigmoid, Softmax

WHOLE_MAP_OBJECTIVES = ("low_rank", "flow")
"""Values of ``config.objective`` by which a model learns such a distribution."""


class WholeMaps(ABC):
    """Distribution of all logits of a batch of maps ``(B, K, h, w)``."""

    @abstractmethod
    def marginal_logits(self) -> Tensor:
        """Logarithms (of layers log-odds) ``(B, K, h, w)`` of each pixel's mean probabilities, always the same."""

    @abstractmethod
    def sample(self, count: int, generators: Sequence[torch.Generator | None]) -> Tensor:
        """Logits of ``count`` maps, ``(B, R, K, h, w)``.

        Args:
            count: R.
            generators: one for each of the B images.
        """

    @abstractmethod
    def loss(self, labels: Tensor, ignore_index: int) -> Tensor:
        """What training makes small, for each labelled cell; noise comes from torch's own generator.

        Args:
            labels: class ids ``(B, h, w)``; or layers ``(B, K, h, w)``, whose losses are added up.
            ignore_index: label without loss.

        Returns:
            Scalar; zero (with a graph) if nothing is labelled.
        """


def marginals_of(prediction: Tensor, classes: int, whole: Callable[[Tensor], WholeMaps]) -> Tensor:
    """`WholeMaps.marginal_logits` ``(..., K, h, w)`` of what a head gave; with K channels these are logits already.

    Args:
        prediction: ``(..., K', h, w)``.
        classes: K.
        whole: reads a distribution from ``(N, K', h, w)``.
    """
    if prediction.shape[-3] == classes:
        return prediction
    return whole(prediction.flatten(0, -4)).marginal_logits().unflatten(0, prediction.shape[:-3])


class WholeMapAggregator(ProbabilityAggregator):
    """Uncertainties from the marginals of the one call that there is; the result keeps the whole distribution.

    Args:
        marginals: from predictions of the head ``(N, K', h, w)`` to logits ``(N, K, h, w)``.
        batch_size: B.
        ensemble_size: R.
        average: ``"last"`` or ``"steps"``.
        link: what makes probabilities of logits; `Softmax` if not given.
    """

    def __init__(
        self,
        marginals: Callable[[Tensor], Tensor],
        batch_size: int,
        ensemble_size: int,
        average: str,
        link: Softmax | Sigmoid | None = None,
    ) -> None:
        super().__init__(link or Softmax(), batch_size, ensemble_size, average)
        self.marginals = marginals
        self.whole: Tensor | None = None

    def update(self, prediction: Tensor, active: Tensor) -> Tensor:
        """See `Aggregator.update`."""
        self.whole = prediction
        return super().update(self.marginals(prediction), active)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What the head gave ``(B, K', h, w)``, or with several samples or an average of steps logits; uncertainties."""
        logits, kinds = super().result()
        assert self.whole is not None
        return (self.whole if self.average == "last" and self.ensemble_size == 1 else logits), kinds
