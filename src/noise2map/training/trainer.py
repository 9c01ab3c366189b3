"""``MapTrainer``: transformers' Trainer for map models on raw data sets."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from noise2map.data.transforms import Transform
from noise2map.training.callbacks import EmaCallback, MetricsCallback
from noise2map.training.collate import AugmentedSamples, EpochSampler, MapCollator
from noise2map.training.evaluation import evaluate_steps, task_of
from noise2map.training.parameter_groups import decayed_parameters
from noise2map.training.run_directory import (
    CONFIG_FILE,
    FINAL_DIRECTORY,
    last_checkpoint,
    mark_complete,
    replace_directory,
    write_config,
)
from noise2map.training.samples import SampleGridCallback
from noise2map.training.schedules import LearningRateCurve


def step_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """The seed of all randomness of one micro-batch; a resumed run reaches the same numbers, no two steps share them."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _RunCallback(TrainerCallback):
    """Tells the trainer's sampler the epoch, and marks checkpoints complete. Runs after all other callbacks of the library."""

    def __init__(self, trainer: "MapTrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its random state
        if args.should_save:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class MapTrainer(Trainer):
    """Trains a map model on raw samples; noise, augmentation, order and loss curve are functions of the seed and the step.

    Beyond :class:`transformers.Trainer`: the diffusion noise of a step comes from ``(seed, step, micro-batch, rank)``, augmentation
    from ``(seed, epoch, sample)``; ``evaluate`` streams over the raw evaluation set at several step counts with the averaged
    weights; each checkpoint holds them under ``ema/``; ``export_final`` writes ``final/``. The output directory follows
    :mod:`noise2map.training.run_directory`.

    Args:
        model: ``Noise2MapForSemanticSegmentation``, ``Noise2MapForDepthEstimation`` or ``Noise2MapForBevSegmentation``.
        args: transformers' training arguments; ``seed`` drives everything.
        train_dataset: raw samples (``image``, ``labels`` or ``depth_m``, ``id``).
        eval_dataset: raw samples.
        processing_class: the model's image processor.
        transform: joint transform of the training samples, see :mod:`noise2map.data.transforms`.
        resize_training: let the processor resize training samples; ``False`` where the transform cuts windows of the final size.
        curve: learning-rate curve; ``None`` leaves it to ``args.lr_scheduler_type``.
        no_decay: parameters without weight decay, see :func:`noise2map.training.parameter_groups.decayed_parameters`.
        eval_steps: numbers of decoder calls to evaluate; a model without diffusion is evaluated at one call.
        eval_images: evaluate on this many images spread evenly over the set; ``None`` for all.
        sample_images: rows of the sample picture; 0 for none, and none for bird's-eye-view maps.
        ema_half_life_images: half-life of the averaged weights in images; ``None`` for no average.
        ema_warmup_ratio: see :class:`~noise2map.training.callbacks.EmaCallback`.
        callbacks: further callbacks.
        **kwargs: passed on to :class:`transformers.Trainer`.

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
        transform: Transform | None = None,
        resize_training: bool = True,
        curve: LearningRateCurve | None = None,
        no_decay: str | Sequence[str] = "norms",
        eval_steps: Sequence[int] = (1, 3, 10),
        eval_images: int | None = None,
        sample_images: int = 4,
        ema_half_life_images: float | None = 10_000,
        ema_warmup_ratio: float | None = 0.1,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("MapTrainer needs the model's image processor as processing_class")
        if not eval_steps or min(eval_steps) < 1:
            raise ValueError(f"eval_steps is {tuple(eval_steps)}; expected numbers of decoder calls, at least 1")
        decayed_parameters(model, no_decay)  # refuses a bad rule now, not after the data has been loaded
        self.task = task_of(model)
        self.transform, self.curve, self.no_decay, self.eval_images = transform, curve, no_decay, eval_images
        self.eval_steps = tuple(eval_steps) if getattr(model.config, "diffusion", True) else (1,)
        self.ema = EmaCallback(ema_half_life_images, ema_warmup_ratio) if ema_half_life_images is not None else None
        self.sampler = EpochSampler(len(train_dataset) if train_dataset is not None else 0, args.seed)
        self._micro_batch = (-1, -1)
        args.remove_unused_columns = False  # raw samples are not model inputs yet
        own = [callback for callback in (self.ema, MetricsCallback()) if callback is not None]
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=MapCollator(processing_class, self.task, resize=resize_training),
            callbacks=[*own, *callbacks, _RunCallback(self)],
            **kwargs,
        )
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process; start one process for each with 'accelerate launch'")
        if not hasattr(type(model.config), "use_cache"):
            vars(model.config).pop("use_cache", None)  # Trainer sets it on every model; a map model has no such field
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: divide by accumulation steps
        if sample_images and self.task != "bev" and eval_dataset is not None and len(eval_dataset):
            chosen = [eval_dataset[i] for i in _spread(len(eval_dataset), sample_images)]
            palette = getattr(eval_dataset, "palette", None)
            self.add_callback(SampleGridCallback(chosen, processing_class, self.eval_steps, args.seed, palette))

    # -- training --

    def get_train_dataloader(self) -> DataLoader:
        """Batches of augmented samples, in an order that depends on the seed and the epoch alone."""
        if self.train_dataset is None or len(self.train_dataset) < self._train_batch_size:
            count = 0 if self.train_dataset is None else len(self.train_dataset)
            raise ValueError(f"the training set has {count} samples; expected at least one batch of {self._train_batch_size}")
        loader = DataLoader(
            AugmentedSamples(self.train_dataset, self.transform, self.args.seed),
            batch_size=self._train_batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            drop_last=True,
        )
        return self.accelerator.prepare(loader)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch with its own random state (dropout included); the caller's state is untouched."""
        step, previous = self.state.global_step, self._micro_batch
        self._micro_batch = (step, previous[1] + 1 if previous[0] == step else 0)
        seed = step_seed(self.args.seed, step, self._micro_batch[1], self.args.process_index)
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's training loss, with the noise of this step."""
        seed = step_seed(self.args.seed, self.state.global_step, max(self._micro_batch[1], 0), self.args.process_index)
        outputs = model(**inputs, generator=torch.Generator().manual_seed(seed ^ 1))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay, by the ``no_decay`` rule."""
        return decayed_parameters(model, self.no_decay)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate curve given at construction, else transformers' own."""
        if self.curve is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self.curve.scheduler(optimizer or self.optimizer)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest complete checkpoint of the output directory."""
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.args.output_dir)
            if found is None:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to resume from")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint and self.ema is not None:
            self.ema.resume_from = Path(resume_from_checkpoint)
        if self.is_world_process_zero() and not (Path(self.args.output_dir) / CONFIG_FILE).exists():
            write_config(self.args.output_dir, {"training": self.args.to_dict(), "model": self.model.config.to_dict()})
        self._micro_batch = (-1, -1)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights as ``from_pretrained`` does: some backbones (Swin) are stored under names other than their own.

        Trainer would load them by their own names, leave out what it does not find, and go on with half a model.
        """
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())

    # -- evaluation and export --

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model holds the weights that will be shipped."""
        model = self.accelerator.unwrap_model(self.model)
        if self.ema is None or not self.ema.running:
            yield
            return
        with self.ema.averaged(model):
            yield

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of the averaged weights at every step count of ``eval_steps``, e.g. ``eval_mIoU_3`` (see ``evaluate_steps``)."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None or not len(dataset):
            raise ValueError("evaluation needs an eval_dataset with at least one sample")
        indices = _spread(len(dataset), self.eval_images or len(dataset))
        mine = Subset(dataset, indices[self.args.process_index :: self.args.world_size])
        collator = MapCollator(self.processing_class, self.task, keep_raw=True)
        batches = DataLoader(mine, batch_size=self.args.per_device_eval_batch_size, collate_fn=collator)
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        try:
            with self.averaged_weights(), self.accelerator.autocast():
                scores = evaluate_steps(model, self.processing_class, batches, self.eval_steps, self.args.seed, self.args.device)
                metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        finally:
            model.train(training)
        return metrics

    def export_final(self, directory: str | Path | None = None) -> Path:
        """Write the averaged weights, the configuration and the processor; the directory appears whole or not at all.

        Args:
            directory: where to; default ``final/`` in the output directory.
        """
        target = Path(directory) if directory is not None else Path(self.args.output_dir) / FINAL_DIRECTORY
        if self.is_world_process_zero():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with self.averaged_weights():
                    self.accelerator.unwrap_model(self.model).save_pretrained(temporary)
                self.processing_class.save_pretrained(temporary)
                replace_directory(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return target


def _spread(length: int, count: int) -> list[int]:
    """``count`` indices spread evenly over ``length`` samples (all of them if there are fewer)."""
    if count >= length:
        return list(range(length))
    return [int(i) for i in np.linspace(0, length - 1, count).round()]
