"""``MapTrainer``: transformers' Trainer for map models on raw datasets."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from noise2map.data.subsets import evenly_spaced
from noise2map.models.decoding import DecodingOptions
from noise2map.tasks import task_of
from noise2map.training.batches import MapCollator
from noise2map.training.maps.samples import SampleGridCallback
from noise2map.training.seeded_trainer import SeededTrainer


class MapTrainer(SeededTrainer):
    """Trains a map model on raw samples; noise, augmentation, order and loss curve are functions of the seed and the step.

    Beyond :class:`~noise2map.training.seeded_trainer.SeededTrainer`: ``evaluate`` streams over the raw evaluation set at several
    step counts with the averaged weights, and draws sample images.

    Args:
        model: a map model of any task.
        args: transformers' training arguments; ``seed`` drives everything.
        train_dataset: raw samples (``image``, ``labels`` or ``depth_m``, ``id``).
        eval_dataset: raw samples.
        processing_class: the model's image processor.
        resize_training: let the processor resize training samples; ``False`` where the transform cuts windows of the final size.
        eval_steps: numbers of decoder calls to evaluate; a model without diffusion is evaluated at one call.
        sample_images: rows of the sample image; 0 for none, and none for bird's-eye-view maps.
        **kwargs: of :class:`~noise2map.training.seeded_trainer.SeededTrainer` (``transform``, ``curve``, ``no_decay``,
            ``eval_images``, ``ema_half_life_images``, ``ema_warmup_ratio``, ``callbacks``) and :class:`transformers.Trainer`.

    Raises:
        ValueError: for data parallelism in one process, a missing processor, or a bad option.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        resize_training: bool = True,
        eval_steps: Sequence[int] = (1, 3, 10),
        sample_images: int = 4,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("MapTrainer needs the model's image processor as processing_class")
        if not eval_steps or min(eval_steps) < 1:
            raise ValueError(f"eval_steps is {tuple(eval_steps)}; expected numbers of decoder calls, at least 1")
        self.task = task_of(model)
        self.eval_steps = tuple(eval_steps) if getattr(model.config, "diffusion", True) else (1,)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=MapCollator(processing_class, self.task, resize=resize_training),
            **kwargs,
        )
        if sample_images and self.task.of_images and eval_dataset is not None and len(eval_dataset):
            chosen = [eval_dataset[i] for i in evenly_spaced(len(eval_dataset), sample_images, ends=True)]
            palette = getattr(eval_dataset, "palette", None)
            self.add_callback(SampleGridCallback(chosen, processing_class, self.eval_steps, args.seed, palette))

    @property
    def title(self) -> str:
        """Title of the run, in a few words."""
        return f"{self.task} maps"

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of the averaged weights at every step count of ``eval_steps``, e.g. ``eval_mIoU_3`` (see ``evaluate_steps``)."""
        collator = MapCollator(self.processing_class, self.task, keep_raw=True)
        batches = self.evaluation_batches(eval_dataset, collator)

        def score(model: nn.Module) -> dict[str, float]:
            return evaluate_steps(model, self.processing_class, batches, self.eval_steps, self.args.seed, self.args.device)

        return self.score_averaged(score, metric_key_prefix)


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
        batches: what :class:`~noise2map.training.batches.MapCollator` with ``keep_raw=True`` makes.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        device: where the model is.

    Returns:
        ``{"mIoU_3": 0.41, ...}`` in [0, 1] for segmentation, ``{"abs_rel_3": ..., "delta1_3": ..., ...}`` for
        depth, ``{"mIoU_max_3": ..., "mIoU_50_3": ...}`` for bird's-eye-view maps.
    """
    task = task_of(model)
    scores = {count: task.training_metric(model.config).to("cpu") for count in steps}
    for batch in batches:
        features = task.encode(model, batch)
        for count, score in scores.items():
            output = DecodingOptions(num_inference_steps=count, seed=seed).decode(model, features, batch["ids"])
            task.update_metric(score, output, batch, processor)
    results: dict[str, float] = {}
    for count, score in scores.items():
        for name, value in score.compute().items():
            if value.ndim == 0:
                results[f"{name}_{count}"] = float(value)
    return results
