"""Trainer of an image encoder on classes, depth and normals together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from noise2map.tasks import IMAGE_TASKS, get_task
from noise2map.tasks.base import Task
from noise2map.training.seeded_trainer import SeededTrainer


class JointCollator:
    """Raw samples with every kind of map to ``pixel_values`` and ``labels`` by kind.

    Args:
        processor: the image processor.
        tasks: whose maps the samples hold.
    """

    def __init__(self, processor: Any, tasks: Sequence[Task]) -> None:
        self.processor, self.tasks = processor, tasks

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``pixel_values`` ``(B, 3, H, W)`` and ``labels``: the true maps ``(B, ..., H, W)`` by the samples' names of them."""
        batches = {task.sample_key: task.batch(self.processor, samples) for task in self.tasks}
        pixels = next(iter(batches.values()))["pixel_values"]
        return {"pixel_values": pixels, "labels": {name: batch["labels"] for name, batch in batches.items()}}


class EncoderTrainer(SeededTrainer):
    """Trains a `JointEncoder`; evaluation gives the loss of each head and the main scores of its maps.

    Args:
        model: the encoder and its heads.
        args: transformers' training arguments; ``seed`` drives everything.
        eval_dataset: raw samples with every kind of map.
        processing_class: the image processor.
        **kwargs: of :class:`~noise2map.training.seeded_trainer.SeededTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        self.tasks = [get_task(name) for name in IMAGE_TASKS]
        super().__init__(
            model,
            args,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=JointCollator(processing_class, self.tasks),
            **kwargs,
        )

    @property
    def title(self) -> str:
        """Title of the run, in a few words."""
        return "image encoder"

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Losses and scores of the averaged weights, e.g. ``eval_labels_loss`` and ``eval_mIoU``."""
        batches = self.evaluation_batches(eval_dataset, self.data_collator)
        return self.score_averaged(lambda model: self._scores(model, batches), metric_key_prefix)

    @torch.no_grad()
    def _scores(self, model: Any, batches: DataLoader) -> dict[str, float]:
        metrics = {task.sample_key: task.training_metric(model.config) for task in self.tasks}
        sums: dict[str, float] = dict.fromkeys(metrics, 0.0)
        count = 0
        for batch in batches:
            labels: dict[str, Tensor] = {name: value.to(self.args.device) for name, value in batch["labels"].items()}
            output = model(batch["pixel_values"].to(self.args.device), labels)
            count += (size := len(batch["pixel_values"]))
            for name, metric in metrics.items():
                sums[name] += float(output.losses[name]) * size
                truth = labels[name]
                metric.update(model.heads[name].maps(output.predictions[name], tuple(truth.shape[-2:])).cpu(), truth.cpu())
        # Metrics are summed over processes by torchmetrics; so are the losses here, by how many images each process saw.
        totals = self.accelerator.reduce(torch.tensor([*sums.values(), count], device=self.args.device), "sum").tolist()
        scores = {f"{name}_loss": total / totals[-1] for name, total in zip(sums, totals)}
        for task in self.tasks:
            values = metrics[task.sample_key].compute()
            scores |= {name: float(values[name]) for name in task.card_scores if name in values}
        return scores
