"""Temperature scaling: one number, fitted on held-out images, that makes the probabilities honest (Guo et al. 2017)."""

from collections.abc import Iterable

import torch
from torch import Tensor

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.02, 50.0
_BISECTIONS = 50


def _sample_pixels(
    logits: Tensor, labels: Tensor, ignore_index: int, pixels_per_image: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At most `pixels_per_image` random labelled pixels of each image: logits `(P, K)` and labels `(P,)`."""
    if logits.ndim != 4 or logits[:, 0].shape != labels.shape:
        raise ValueError(f"need logits (B, K, H, W) and labels (B, H, W), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    chosen_logits, chosen_labels = [], []
    for image_logits, image_labels in zip(logits, labels):
        known = (image_labels != ignore_index).flatten().nonzero()[:, 0]
        order = torch.randperm(len(known), generator=generator)[:pixels_per_image].to(known.device)
        pixels = known[order]
        chosen_logits.append(image_logits.flatten(1)[:, pixels].T.double().cpu())
        chosen_labels.append(image_labels.flatten()[pixels].long().cpu())
    return torch.cat(chosen_logits), torch.cat(chosen_labels)


def fit_temperature(
    logits: Iterable[Tensor],
    labels: Iterable[Tensor],
    ignore_index: int = 255,
    pixels_per_image: int = 2048,
    seed: int = 0,
) -> float:
    """Find the temperature `T` that minimises the negative log likelihood of `softmax(logits / T)`.

    The loss is convex in `1/T`; its derivative, the mean of `E_p[z] - z_true` under the tempered probabilities, is
    monotone, so bisection finds the minimum to full precision. Accuracy does not change.

    Args:
        logits: Batches of logits `(B, K, H, W)`.
        labels: Batches of true class ids `(B, H, W)`.
        ignore_index: Label of the pixels that do not count.
        pixels_per_image: Random pixels kept of each image, so that memory does not grow with the image size.
        seed: Seed of that choice.

    Returns:
        The temperature, between 0.02 and 50 (an end of that range where the data asks for more, e.g. when no pixel
        is wrong). Store it in `config.temperature`.

    Raises:
        ValueError: If shapes do not fit, the two iterables differ in length, no pixel is labelled, or a logit is NaN.
    """
    if pixels_per_image < 1:
        raise ValueError(f"pixels_per_image must be at least 1, got {pixels_per_image}")
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(logits, labels, strict=True)
    samples = [_sample_pixels(z, y, ignore_index, pixels_per_image, generator) for z, y in pairs]
    if not samples or not sum(len(y) for _, y in samples):
        raise ValueError("no labelled pixel to fit a temperature on")
    all_logits, all_labels = torch.cat([z for z, _ in samples]), torch.cat([y for _, y in samples])
    if not bool(torch.isfinite(all_logits).all()):
        raise ValueError("logits must be finite to fit a temperature")
    if int(all_labels.min()) < 0 or int(all_labels.max()) >= all_logits.shape[1]:
        raise ValueError(f"labels must be in 0..{all_logits.shape[1] - 1} or {ignore_index}")
    true_mean = all_logits.gather(1, all_labels[:, None]).mean()

    def slope(inverse: float) -> float:
        expected = ((all_logits * inverse).softmax(1) * all_logits).sum(1).mean()
        return float(expected - true_mean)

    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    if slope(low) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(high) <= 0:
        return LOWEST_TEMPERATURE
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low * high) ** -0.5
