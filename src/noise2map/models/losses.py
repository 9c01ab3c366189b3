"""Task losses, on predictions resized to the labels (DDP, Sec. 3.3: the task's own loss, not l2 on the noise)."""

import torch
from torch import Tensor
from torch.nn import functional


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, average: str = "all") -> Tensor:
    """Cross entropy of logits resized bilinearly to the labels.

    Args:
        logits: ``(B, K, h, w)``.
        labels: class ids ``(B, H, W)``, integers.
        ignore_index: label without loss.
        average: ``"all"`` divides by the number of all pixels, as the published code does; ``"valid"`` by that of labelled ones.

    Returns:
        Scalar.
    """
    logits = functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = functional.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    count = labels.numel() if average == "all" else int((labels != ignore_index).sum())
    return total / max(count, 1)


def sigloss(depth_m: Tensor, labels_m: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scale-invariant log loss ``sqrt(var(g) + 0.15 mean(g)²)``, ``g`` the log ratio of all valid pixels (Eigen 2014).

    Args:
        depth_m: predicted metres ``(B, 1, h, w)``, resized bilinearly to the labels.
        labels_m: metres ``(B, H, W)``, 0 where invalid.
        valid: boolean mask ``(B, H, W)``; default ``labels_m > 0``.

    Returns:
        Scalar; zero (with a graph) if fewer than two pixels are valid.
    """
    depth_m = functional.interpolate(depth_m.float(), size=labels_m.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    valid = labels_m > 0 if valid is None else valid
    ratio = torch.log(depth_m[valid] + 1e-3) - torch.log(labels_m[valid] + 1e-3)
    if ratio.numel() < 2:
        return depth_m.sum() * 0
    return torch.sqrt(ratio.var() + 0.15 * ratio.mean() ** 2)


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


def reduce_depth(depth_m: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth at a lower resolution, each cell the mean of its valid pixels alone.

    Args:
        depth_m: metres ``(B, H, W)``; what invalid pixels hold does not matter.
        valid: boolean mask ``(B, H, W)``.
        size: ``(h, w)``.

    Returns:
        Metres ``(B, h, w)`` and the mask of cells with at least one valid pixel.
    """
    weight = valid.to(depth_m.dtype).unsqueeze(1)
    known = torch.where(valid, depth_m, torch.zeros_like(depth_m)).unsqueeze(1)
    share = functional.interpolate(weight, size=size, mode="area")
    mean = functional.interpolate(known, size=size, mode="area") / share.clamp(min=torch.finfo(share.dtype).tiny)
    any_valid = share > 0
    return torch.where(any_valid, mean, torch.zeros_like(mean)).squeeze(1), any_valid.squeeze(1)
