"""Sparse refinement: the first call of a run is whole, later ones compute the tokens alone whose map is still open."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.models.map_decoder import ChosenTokens, DecoderContext, MapDecoder


def most_uncertain(uncertainty: Tensor, share: float) -> Tensor:
    """The same number of cells of every map, those with the largest values: boolean ``(N, h, w)``.

    Args:
        uncertainty: ``(N, h, w)``; of equal values the earlier cells come first, so a map's choice is its own.
        share: between 0 and 1; at least one cell.
    """
    flat = uncertainty.flatten(1)
    count = min(flat.shape[1], max(1, round(share * flat.shape[1])))
    first = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, first, True).view_as(uncertainty)


def uncertain_above(uncertainty: Tensor, threshold: float) -> Tensor:
    """The cells of a value of at least the threshold, as many of a map as there are: boolean ``(N, h, w)``.

    What is not a number is among them.
    """
    return ~(uncertainty < threshold)


def neighbour_range(values: Tensor) -> Tensor:
    """How far values ``(N, K, h, w)`` reach among a cell and its eight neighbours, largest of the channels: ``(N, h, w)``.

    For maps that say nothing of their uncertainty: what a further step moves most lies at their edges.
    """
    largest, least = (functional.max_pool2d(sign * values, 3, stride=1, padding=1) for sign in (1, -1))
    return (largest + least).amax(1)


class SparseRefinement:
    """Decoder calls of a run of which all but the first are sparse; without gradients.

    The choice is made once, after the first call, by `MapModel.cell_uncertainty`. Tokens that are not chosen keep their last
    features, and what others read of them, from that call; head, feedback and solver stay whole, since they cost little.

    Args:
        model: a `MapModel`.
        share: of the tokens that later calls compute.
        threshold: uncertainty from which on a token is computed, in place of the share. Maps then have different numbers of them,
            and some none: chosen tokens of all maps are one list, so a map's own do not depend on its batch.

    Raises:
        ValueError: if the decoder cannot compute some of its tokens (an exported graph).
    """

    def __init__(self, model: Any, share: float = 1.0, threshold: float | None = None) -> None:
        if not isinstance(model.decoder, MapDecoder):
            kind = type(model.decoder).__name__
            raise ValueError(f"refine is 'uncertain'; {kind} computes whole maps alone, expected a MapDecoder or refine='all'")
        self.model, self.share, self.threshold = model, share, threshold
        self._values: list[Tensor] = []  # of each layer, with a border
        self._tokens: Tensor
        self._chosen: ChosenTokens

    @torch.no_grad()
    def first(self, context: DecoderContext, shown: Tensor, modulations: Tensor) -> Tensor:
        """Tokens ``(N, h*w, C)`` of a whole call; arguments as of `MapDecoder.forward`."""
        self._values = []
        self._tokens = self.model.decoder(context, shown, modulations, self._values)
        return self._tokens

    @torch.no_grad()
    def choose(self, cells: Tensor) -> None:
        """Chooses by the prediction ``(N, K, h, w)`` of the first call."""
        uncertainty = self.model.cell_uncertainty(cells)
        by_share = self.threshold is None
        mask = most_uncertain(uncertainty, self.share) if by_share else uncertain_above(uncertainty, self.threshold)
        self._chosen = ChosenTokens.where(mask)

    @torch.no_grad()
    def later(self, context: DecoderContext, shown: Tensor, modulations: Tensor, running: Tensor) -> Tensor:
        """Tokens ``(N, h*w, C)`` of a sparse call; of maps that do not run, boolean ``(N,)``, none is computed."""
        chosen = self._chosen if bool(running.all()) else self._chosen.of_maps(running)
        if not len(chosen.cells):
            return self._tokens
        fresh = self.model.decoder.refine(context, shown, modulations, chosen, self._values)
        # Not in place: who keeps the tokens of an earlier call keeps them as they were.
        self._tokens = self._tokens.clone()
        self._tokens[chosen.images, chosen.cells] = fresh
        return self._tokens
