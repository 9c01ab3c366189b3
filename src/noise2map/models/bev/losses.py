"""Loss of layers that may overlap."""

import torch
from torch import Tensor
from torch.nn import functional


def multilabel_focal_loss(logits: Tensor, layers: Tensor, gamma: float = 2.0, ignore_index: int = 255) -> Tensor:
    """Focal loss of non-exclusive layers: for each, the mean of ``(1 - p_truth)^gamma`` times the cross entropy (Lin et al. 2017).

    Args:
        logits: ``(B, K, X, Y)``.
        layers: ``(B, K, X, Y)``, 1 where the layer is present, 0 where not, ``ignore_index`` where nobody knows.
        gamma: weight of the hard cells; 0 gives the cross entropy.
        ignore_index: label without loss.

    Returns:
        One loss for each layer ``(K,)``; the published model adds them up.
    """
    known = layers != ignore_index
    truth = (layers == 1).to(torch.promote_types(logits.dtype, torch.float32))
    entropy = functional.binary_cross_entropy_with_logits(logits.to(truth.dtype), truth, reduction="none")
    p_truth = torch.exp(-entropy)  # the cross entropy of a binary label is minus the log of its probability
    loss = (1 - p_truth) ** gamma * entropy * known
    return loss.sum(dim=(0, 2, 3)) / known.sum(dim=(0, 2, 3)).clamp(min=1)
