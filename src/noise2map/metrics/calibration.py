"""Calibration of probabilities: expected calibration error, Brier score, log likelihood, temperature scaling."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from noise2map.metrics.histograms import bin_index, histogram_rows, num_bins
from noise2map.metrics.uncertainty import check_unit_interval, flat_maps

_LEAST_PROBABILITY = 1e-12


class ExpectedCalibrationError(Metric):
    """Gap between confidence and accuracy, in equal-width and in equal-mass bins.

    `ece` is the mean over pixels of `|accuracy - confidence|` of the pixel's bin (Guo et al. 2017); `mce` the largest
    gap of a bin that holds pixels; `adaptive_ece` is `ece` with bins that hold equally many pixels (Nixon et al.
    2019), read off a fine histogram of `1 - confidence`, whose bins are split in proportion where a border falls
    inside one.

    Args:
        num_bins: Number of bins of either kind.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If `num_bins` is not positive.
    """

    full_state_update = False
    bins: Tensor
    fine: Tensor

    def __init__(self, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins}")
        self.num_bins = num_bins
        self.add_state("bins", torch.zeros(3, num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("fine", torch.zeros(3, _FINE_BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, correct: Tensor, valid: Tensor | None = None) -> None:
        """Add maps `(B, H, W)`: confidence in [0, 1] (the largest probability), whether the class is right, mask.

        Raises:
            ValueError: If shapes differ, a confidence is outside [0, 1], or something is neither right nor wrong.
        """
        maps, mask = flat_maps({"confidence": confidence, "correct": correct}, valid)
        confidence = check_unit_interval(maps["confidence"], "confidence")
        if not bool(((maps["correct"] == 0) | (maps["correct"] == 1)).all()):  # invalid pixels are 0
            raise ValueError("correct must be bool, or 0 and 1, at every valid pixel; expected whether the class is right")
        correct = (maps["correct"] == 1).long()
        level = (confidence.double() * self.num_bins).long().clamp_max(self.num_bins - 1)
        for state, index in ((self.bins, level), (self.fine, bin_index(1 - confidence.double()))):
            bins = state.shape[1]
            pair = histogram_rows(2 * index + correct, 2 * bins, valid=mask).sum(0).view(bins, 2)
            state += torch.stack([pair.sum(1), histogram_rows(index, bins, confidence, mask).sum(0), pair[:, 1]])

    def compute(self) -> dict[str, Tensor]:
        """`ece`, `adaptive_ece`, `mce`, `mean_confidence`, `accuracy`: scalars in [0, 1], NaN without pixels."""
        count, confidence, correct = self.bins
        gap = (confidence - correct).abs()
        total = count.sum()
        return {
            "ece": gap.sum() / total,
            "adaptive_ece": _equal_mass_gap(self.fine, self.num_bins),
            "mce": (gap / count.clamp_min(1)).max().where(total > 0, torch.nan),
            "mean_confidence": confidence.sum() / total,
            "accuracy": correct.sum() / total,
        }

    def reliability(self) -> dict[str, Tensor]:
        """Per equal-width bin: `confidence` and `accuracy` (NaN if empty) and `share` of the pixels, `(bins,)` each."""
        count, confidence, correct = self.bins
        return {"confidence": confidence / count, "accuracy": correct / count, "share": count / count.sum()}


_FINE_BINS = num_bins()


def _equal_mass_gap(fine: Tensor, groups: int) -> Tensor:
    """Calibration gap of `groups` equally large groups of a fine histogram `(3, bins)`."""
    count, total = fine[0], fine[0].sum()
    cumulative = torch.nn.functional.pad(fine.cumsum(1), (1, 0))  # (3, bins + 1), at the bin borders
    border = total * torch.arange(groups + 1, dtype=fine.dtype, device=fine.device) / groups
    bin_ = (torch.searchsorted(cumulative[0].contiguous(), border, right=True) - 1).clamp(0, len(count) - 1)
    share = ((border - cumulative[0][bin_]) / count[bin_].clamp_min(1)).clamp(0, 1)
    at_border = cumulative[:, bin_] + share * fine[:, bin_]  # (3, groups + 1)
    _, confidence, correct = at_border.diff(dim=1)
    return (confidence - correct).abs().sum() / total


class ProbabilityScores(Metric):
    """Brier score and negative log likelihood of class probabilities, pooled over pixels.

    Brier: mean over pixels of the squared distance between the probabilities and the one-hot truth, in [0, 2].
    NLL: mean of `-log p(true class)`, in nats.

    Args:
        ignore_index: True label of the pixels that do not count.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add probabilities `(B, K, H, W)` that sum to 1 over `K`, and class ids `(B, H, W)`.

        Raises:
            ValueError: If the shapes do not fit, a label is outside `0..K-1`, or a probability that counts outside [0, 1].
        """
        if probabilities.ndim != 4 or probabilities[:, 0].shape != labels.shape:
            raise ValueError(
                f"need probabilities (B, K, H, W) and labels (B, H, W), got {tuple(probabilities.shape)} and {tuple(labels.shape)}"
            )
        known = labels.long() != self.ignore_index
        if bool((known & ((labels < 0) | (labels >= probabilities.shape[1]))).any()):
            raise ValueError(f"labels must be in 0..{probabilities.shape[1] - 1} or {self.ignore_index}")
        probabilities = check_unit_interval(probabilities.where(known[:, None], 0), "probabilities")
        index = torch.where(known, labels, 0).long()
        true = probabilities.gather(1, index[:, None])[:, 0].double()  # (B, H, W)
        # |p - e_y|^2 = |p|^2 - 2 p_y + 1
        brier = probabilities.square().sum(1).double() - 2 * true + 1
        likelihood = -true.clamp_min(_LEAST_PROBABILITY).log()
        count = known.double()
        self.sums += torch.stack([count.sum(), (brier * count).sum(), (likelihood * count).sum()])

    def compute(self) -> dict[str, Tensor]:
        """`brier` and `nll`, scalars in float64, NaN without pixels."""
        count, brier, likelihood = self.sums
        return {"brier": brier / count, "nll": likelihood / count}


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
        known = (image_labels.long() != ignore_index).flatten().nonzero()[:, 0]
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


_SAME_CONFIDENCE = 1e-9


def fit_confidences(confidence: Tensor, correct: Tensor, groups: int = 20) -> tuple[tuple[float, float], ...]:
    """Rising curve from confidence to the share of right pixels: isotonic regression (Zadrozny & Elkan 2002).

    Pixels are first joined to groups of equal number by confidence, so that a curve is a few numbers; groups whose shares fall are
    then pooled (pool adjacent violators), which is the rising curve of least squared error.

    Args:
        confidence: Probability of the likeliest class, `(P,)`.
        correct: Whether it is right, `(P,)`.
        groups: Most knots.

    Returns:
        Knots `(mean confidence, share)`, rising in both.

    Raises:
        ValueError: If shapes differ or there is no pixel.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"need confidences and bools (P,), at least one; got shapes {tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    ordered, order = confidence.double().sort()
    _, tie, pixels_of = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    right = torch.zeros(len(pixels_of), dtype=torch.float64, device=tie.device).index_add_(0, tie, correct[order].double())
    pairs = zip(ordered.tensor_split(groups), (right / pixels_of)[tie].tensor_split(groups))  # the order of equal ones is chance
    knots: list[tuple[float, float, int]] = []
    for x, y in ((x, y) for x, y in pairs if len(x)):
        knot = (float(x.mean()), float(y.mean()), len(x))
        if knots and knot[0] - knots[-1][0] < _SAME_CONFIDENCE:  # means of equal confidences differ by rounding alone
            before = knots.pop()
            total = before[2] + knot[2]
            knot = (before[0], (before[1] * before[2] + knot[1] * knot[2]) / total, total)
        knots.append(knot)
    blocks: list[list[float]] = []  # share, weight, number of knots
    for _, share, pixels in knots:
        blocks.append([share, pixels, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            added, weight, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + added * weight) / (last[1] + weight)
            last[1], last[2] = last[1] + weight, last[2] + count
    shares = [share for share, _, count in blocks for _ in range(int(count))]
    return tuple((x, share) for (x, _, _), share in zip(knots, shares))
