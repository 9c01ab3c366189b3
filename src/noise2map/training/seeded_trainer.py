"""``SeededTrainer``: transformers' Trainer whose noise, order and loss curve are functions of the seed and the step."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from noise2map.data.subsets import evenly_spaced
from noise2map.data.transforms import Transform
from noise2map.runs.files import replace_directory
from noise2map.runs.run_directory import (
    COMPLETE_MARKER,
    CONFIG_FILE,
    FINAL_DIRECTORY,
    last_checkpoint,
    mark_complete,
    rewind_metrics,
    write_config,
    writing_checkpoint,
)
from noise2map.training.batches import NOT_INPUTS, AugmentedSamples, EpochSampler
from noise2map.training.callbacks import EmaCallback, MetricsCallback, ReadableProgress, diverged
from noise2map.training.optimization import LearningRateCurve, decayed_parameters


def step_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """The seed of all randomness of one micro-batch; a resumed run reaches the same numbers, no two steps share them."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _RunCallback(TrainerCallback):
    """Tells the trainer's sampler the epoch, marks checkpoints complete and deletes old ones. Runs after all other callbacks."""

    def __init__(self, trainer: "SeededTrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its random state
        if args.should_save:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with writing_checkpoint(checkpoint):
                mark_complete(checkpoint)
            rotate_checkpoints(args.output_dir, args.save_total_limit, state.best_model_checkpoint, use_mtime=True)


class SeededTrainer(Trainer):
    """Base class of the trainers of maps and of generators.

    Beyond :class:`transformers.Trainer`: the noise of a step comes from ``(seed, step, micro-batch, rank)``, augmentation from
    ``(seed, epoch, sample)``; each checkpoint holds averaged weights under ``ema/``; ``export_final`` writes ``final/``. The
    output directory follows :mod:`noise2map.runs.run_directory`.

    Args:
        model: called with a batch and ``generator=``, gives ``loss``; has ``save_pretrained`` and ``config.to_dict()``.
        args: transformers' training arguments; ``seed`` drives everything.
        train_dataset: raw samples.
        transform: joint transform of the training samples, see :mod:`noise2map.data.transforms`.
        curve: learning-rate curve; ``None`` leaves it to ``args.lr_scheduler_type``.
        no_decay: parameters without weight decay, see :func:`noise2map.training.optimization.decayed_parameters`.
        eval_images: evaluate on this many images spread evenly over the set; ``None`` for all.
        ema_half_life_images: half-life of the averaged weights in images; ``None`` for no average.
        ema_warmup_ratio: see :class:`~noise2map.training.callbacks.EmaCallback`.
        callbacks: further callbacks.
        **kwargs: passed on to :class:`transformers.Trainer`.

    Raises:
        ValueError: for data parallelism in one process, or a bad option.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Any = None,
        transform: Transform | None = None,
        curve: LearningRateCurve | None = None,
        no_decay: str | Sequence[str] = "norms",
        eval_images: int | None = None,
        ema_half_life_images: float | None = 10_000,
        ema_warmup_ratio: float | None = 0.1,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        decayed_parameters(model, no_decay)  # refuses a bad rule now, not after the data has been loaded
        self.transform, self.curve, self.no_decay, self.eval_images = transform, curve, no_decay, eval_images
        self.ema = EmaCallback(ema_half_life_images, ema_warmup_ratio) if ema_half_life_images is not None else None
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.sampler = EpochSampler(len(train_dataset) if train_dataset is not None else 0, args.seed, step)
        self._micro_batch = (-1, -1)
        args.remove_unused_columns = False  # raw samples are not model inputs yet
        own = [callback for callback in (self.ema, MetricsCallback()) if callback is not None]
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, callbacks=[*own, *callbacks, _RunCallback(self)], **kwargs
        )
        if self.pop_callback(ProgressCallback) is not None:  # which prints dictionaries of strings
            self.add_callback(ReadableProgress())
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process; start one process for each with 'accelerate launch'")
        if not hasattr(type(model.config), "use_cache"):
            vars(model.config).pop("use_cache", None)  # Trainer sets it on every model; ours have no such field
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: divide by accumulation steps

    def check_training_set(self) -> None:
        """Refuse a training set that does not fill an optimizer step.

        Raises:
            ValueError: if it has fewer samples.
        """
        if not len(self.sampler):
            args, step = self.args, self.sampler.step
            parts = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
            share = "" if parts[0] == step else " ({}, accumulation {}, {} processes)".format(*parts)
            raise ValueError(f"the training set has {self.sampler.length} samples; expected at least one batch of {step}{share}")

    def get_train_dataloader(self) -> DataLoader:
        """Batches of augmented samples, in an order that depends on the seed and the epoch alone."""
        self.check_training_set()
        loader = DataLoader(
            self.training_samples(),
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

    def evaluation_batches(self, eval_dataset: Any, collate: Callable[[Any], Any]) -> DataLoader:
        """This process's share of the evaluation set, of at most ``eval_images`` samples spread evenly over it.

        Args:
            eval_dataset: raw samples; ``None`` for the trainer's own.
            collate: samples to a batch.

        Raises:
            ValueError: if there are none.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None or not len(dataset):
            raise ValueError("evaluation needs an eval_dataset with at least one sample")
        indices = evenly_spaced(len(dataset), self.eval_images or len(dataset), ends=True)
        mine = Subset(dataset, indices[self.args.process_index :: self.args.world_size])
        return DataLoader(mine, batch_size=self.args.per_device_eval_batch_size, collate_fn=collate)

    def training_samples(self) -> Dataset:
        """The training set addressed by ``(epoch, index)``."""
        return AugmentedSamples(self.train_dataset, self.transform, self.args.seed)

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
        inputs = {name: value for name, value in inputs.items() if name not in NOT_INPUTS}
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
        """Train; ``resume_from_checkpoint=True`` goes on from the newest complete checkpoint of the output directory.

        Raises:
            ValueError: if there is none, or if a new run is begun beside complete checkpoints, which it would mix with its own.
        """
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.args.output_dir)
            if found is None:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to resume from")
            resume_from_checkpoint = str(found)
        elif not resume_from_checkpoint and (found := last_checkpoint(self.args.output_dir)) is not None:
            raise ValueError(
                f"{self.args.output_dir} holds {found.name} of an earlier run; expected resume_from_checkpoint=True to go on "
                "from it, or another output_dir"
            )
        if resume_from_checkpoint and self.ema is not None:
            self.ema.resume_from = Path(resume_from_checkpoint)
        if self.is_world_process_zero() and not (Path(self.args.output_dir) / CONFIG_FILE).exists():
            write_config(self.args.output_dir, {"training": self.args.to_dict(), "model": self.model.config.to_dict()})
        self._micro_batch = (-1, -1)
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            if 0 < self.args.max_steps <= state.global_step:
                return self._take_up_finished(resume_from_checkpoint, state)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer does; the next step has the rate of this run's curve, where the checkpoint has that of a shorter run's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.curve is None:
            return
        scheduler = self.lr_scheduler
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        scheduler._last_lr = rates

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights as ``from_pretrained`` does: some backbones (Swin) are stored under names other than their own.

        Trainer would load them by their own names, leave out what it does not find, and go on with half a model.
        """
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        if not isinstance(target, PreTrainedModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())

    def _take_up_finished(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """Weights, average and state of a checkpoint at the run's end; Trainer would train one step more before it stops."""
        self._load_from_checkpoint(checkpoint)
        self.state = state
        if self.ema is not None:
            self.ema.start(self.accelerator.unwrap_model(self.model))
        if self.is_world_process_zero():
            rewind_metrics(self.args.output_dir, state.global_step, rescored=True)
        return TrainOutput(state.global_step, 0.0, {})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer does; a disk that is full is reported in one line and leaves nothing half-written.

        Old checkpoints are deleted when the new one is complete, averaged weights included, not before.
        """
        self._check_weights()
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():  # until it is whole again it is not what an earlier run wrote
            (checkpoint / COMPLETE_MARKER).unlink(missing_ok=True)
        kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing_checkpoint(checkpoint):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = kept

    def _check_weights(self) -> None:
        """Refuse to keep weights that are no numbers: the loss is looked at only where it is logged."""
        model = self.accelerator.unwrap_model(self.model)
        bad = next((name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())), None)
        if bad is not None:
            raise diverged(f"{bad} holds NaN or infinite weights", self.args.output_dir, self.state.global_step)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model holds the weights that will be shipped."""
        model = self.accelerator.unwrap_model(self.model)
        if self.ema is None or not self.ema.running:
            yield
            return
        with self.ema.averaged(model):
            yield

    def score_averaged(self, score: Callable[[nn.Module], dict[str, float]], prefix: str) -> dict[str, float]:
        """Scores the averaged weights, logs the scores and tells the callbacks.

        Args:
            score: model in evaluation mode -> scores by name.
            prefix: of the names in the log.
        """
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        try:
            with self.averaged_weights(), self.accelerator.autocast():
                metrics = {f"{prefix}_{name}": value for name, value in score(model).items()}
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        finally:
            model.train(training)
        return metrics

    def export_final(self, directory: str | Path | None = None) -> Path:
        """Write the averaged weights, the configuration and the processor; the directory appears whole or not at all.

        Args:
            directory: where to; default ``final/`` in the output directory.

        Raises:
            ValueError: if weights are not finite.
        """
        self._check_weights()
        target = Path(directory) if directory is not None else Path(self.args.output_dir) / FINAL_DIRECTORY
        if self.is_world_process_zero():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with self.averaged_weights():
                    self.accelerator.unwrap_model(self.model).save_pretrained(temporary)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(temporary)
                replace_directory(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return target
