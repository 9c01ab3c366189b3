"""Streaming evaluation during training: the image is encoded once, the map decoded with several step counts, batch by batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torchmetrics import Metric

from noise2map.diffusion import image_generator
from noise2map.metrics import BevScores, DepthScores, SegmentationScores


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


@torch.no_grad()
def evaluate_steps(
    model: nn.Module, processor: Any, batches: Iterable[dict[str, Any]], steps: Sequence[int], seed: int, device: torch.device
) -> dict[str, float]:
    """Scores of the model for each number of steps.

    Every image starts from the noise of ``(seed, image id)``, so scores do not depend on the batch size or the number of
    processes, and runs are compared on the same noise. Under several processes each sees its own batches and the metrics are
    summed over processes.

    Args:
        model: a map model in evaluation mode.
        processor: its image processor.
        batches: what :class:`~noise2map.training.collate.MapCollator` with ``keep_raw=True`` makes.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        device: where the model is.

    Returns:
        ``{"mIoU_3": 0.41, ...}`` in [0, 1] for segmentation, ``{"abs_rel_3": ..., "delta1_3": ..., ...}`` for
        depth, ``{"mIoU_max_3": ..., "mIoU_50_3": ...}`` for bird's-eye-view maps.
    """
    task = task_of(model)
    scores = {count: make_scores(model, task).to("cpu") for count in steps}
    for batch in batches:
        if task == "bev":
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "samples", "ids")}
            features = model.encode_sensors(**send_to_device(inputs, device))
            truths, sizes = [], []
        else:
            features = model.encode_image(batch["pixel_values"].to(device))
            truths = [true_map(sample, task) for sample in batch["samples"]]
            sizes = [tuple(truth.shape) for truth in truths]
        for count, score in scores.items():
            generators = [image_generator(seed, image_id) for image_id in batch["ids"]]
            outputs = model.decode_map(features, num_inference_steps=count, generator=generators)
            if task == "bev":  # the map has a grid of its own
                score.update(outputs.probabilities.float().cpu(), batch["labels"].cpu())
                continue
            for predicted, truth in zip(predict_maps(outputs, processor, task, sizes), truths):
                score.update(predicted[None], truth[None])
    results: dict[str, float] = {}
    for count, score in scores.items():
        for name, value in score.compute().items():
            if value.ndim == 0:
                results[f"{name}_{count}"] = float(value)
    return results
