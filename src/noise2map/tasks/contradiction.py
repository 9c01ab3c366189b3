"""Contradiction between the labels of an image and a model that has classes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-6
"""No model is believed to be surer than this that a label is wrong: one pixel must not outweigh a region."""


@dataclass(frozen=True)
class Contradiction:
    """What a model says of the labels of one image.

    Attributes:
        model: The most probable class ``(H, W)`` int64.
        label: The labels ``(H, W)`` int64; -1 where they are not known.
        log_model: Natural logarithm of the probability of the most probable class ``(H, W)`` float32.
        log_label: The same of the label; 0 where it is not known.
    """

    model: np.ndarray
    label: np.ndarray
    log_model: np.ndarray
    log_label: np.ndarray

    @property
    def denied(self) -> np.ndarray:
        """Where the model says another class than a known label, ``(H, W)`` bool."""
        return (self.label >= 0) & (self.label != self.model)


def contradiction(logits: Tensor, truth: Tensor, ignore_index: int) -> Contradiction:
    """Compares class scores with labels.

    Args:
        logits: ``(K, H, W)``, at the size of the labels.
        truth: Class ids ``(H, W)`` int64.
        ignore_index: The id of pixels without a label.
    """
    known = truth != ignore_index
    log_p = logits.float().log_softmax(0).clamp_min(float(np.log(LEAST_PROBABILITY)))
    log_model, model = log_p.max(0)
    log_label = log_p.gather(0, torch.where(known, truth, 0)[None])[0]
    return Contradiction(
        model=model.cpu().numpy(),
        label=torch.where(known, truth, -1).cpu().numpy(),
        log_model=log_model.cpu().numpy(),
        log_label=torch.where(known, log_label, 0).cpu().numpy(),
    )
