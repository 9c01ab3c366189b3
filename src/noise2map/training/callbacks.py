"""Callbacks of a run: exponential moving average of the weights, JSON-lines metrics, images of the predictions."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from noise2map.runs.files import write_text
from noise2map.runs.run_directory import EMA_DIRECTORY, append_metrics, rewind_metrics, writing_checkpoint

_EMA_STATE = "ema_state.json"
_EMA_WEIGHTS = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """Keeps an exponential moving average of the weights: the model that is evaluated and shipped.

    The half-life is counted in images seen (Karras et al. 2022, training details), so it does not depend on the batch size, and
    grows with the run during a warm-up: half-life = min(``half_life_images``, ``warmup_ratio`` x images seen). Parameters are
    averaged by :class:`diffusers.training_utils.EMAModel`; floating-point buffers (running statistics of batch norms) with
    the same decay, because statistics of the raw weights do not fit averaged ones; other buffers are copied.

    Args:
        half_life_images: images after which a weight's share in the average has halved.
        warmup_ratio: half-life as a fraction of the images seen so far; ``None`` for no warm-up.

    Raises:
        ValueError: for a half-life or ratio that is not positive.
    """

    def __init__(self, half_life_images: float = 10_000, warmup_ratio: float | None = 0.1) -> None:
        if half_life_images <= 0:
            raise ValueError(f"EMA half_life_images is {half_life_images}; expected a positive number of images")
        if warmup_ratio is not None and warmup_ratio <= 0:
            raise ValueError(f"EMA warmup_ratio is {warmup_ratio}; expected a positive fraction or none")
        self.half_life_images, self.warmup_ratio = half_life_images, warmup_ratio
        self.resume_from: Path | None = None
        self._average: EMAModel | None = None
        self._buffers: list[Tensor] = []

    def decay(self, images_per_step: int, images_seen: int) -> float:
        """The factor of the old average in an update after ``images_seen`` images."""
        half_life = self.half_life_images
        if self.warmup_ratio is not None:
            half_life = min(half_life, self.warmup_ratio * max(images_seen, 1))
        return 0.5 ** (images_per_step / half_life)

    def start(self, model: nn.Module) -> None:
        """Start from the model's weights, or from the checkpoint named by ``resume_from``."""
        self._average = EMAModel(model.parameters(), use_ema_warmup=False, foreach=True)
        self._buffers = [buffer.detach().clone() for buffer in model.buffers()]
        if self.resume_from is not None:
            self._load(self.resume_from / EMA_DIRECTORY, model)
            self.resume_from = None

    def update(self, model: nn.Module, images_per_step: int, images_seen: int) -> None:
        """One step of the average."""
        average = self._running()
        average.decay = average.min_decay = self.decay(images_per_step, images_seen)  # or diffusers' own warm-up bounds it
        average.step(model.parameters())
        for shadow, buffer in zip(self._buffers, model.buffers()):
            if shadow.is_floating_point():
                shadow.lerp_(buffer.to(shadow), 1 - average.cur_decay_value)
            else:
                shadow.copy_(buffer)

    @property
    def running(self) -> bool:
        """True if an average exists (training has begun)."""
        return self._average is not None

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """Inside, ``model`` holds the averaged weights; the raw ones come back afterwards, also after an error."""
        average = self._running()
        # Kept on the model's device, not on the CPU: exact either way and without two transfers.
        raw = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
        try:
            with torch.no_grad():
                average.copy_to(model.parameters())
                for buffer, shadow in zip(model.buffers(), self._buffers):
                    buffer.copy_(shadow)
            yield
        finally:
            with torch.no_grad():
                for tensor, kept in zip((*model.parameters(), *model.buffers()), raw):
                    tensor.copy_(kept)

    def save(self, directory: Path, model: nn.Module, processor: Any = None) -> None:
        """Write the average as a model that ``from_pretrained`` loads, with what resuming needs."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        with self.averaged(model):
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(directory)
            if processor is not None:
                processor.save_pretrained(directory)
        average = self._running()
        # The exact shadow tensors by position, with buffers that save_pretrained may leave out.
        tensors = {f"parameter.{i}": p.contiguous() for i, p in enumerate(average.shadow_params)}
        tensors |= {f"buffer.{i}": b.contiguous().clone() for i, b in enumerate(self._buffers)}
        save_file(tensors, str(directory / _EMA_WEIGHTS))
        write_text(directory / _EMA_STATE, json.dumps({"optimization_step": average.optimization_step}) + "\n")

    def _load(self, directory: Path, model: nn.Module) -> None:
        from safetensors.torch import load_file

        if not (directory / _EMA_STATE).exists():
            raise FileNotFoundError(f"{directory} holds no averaged weights; the checkpoint was written without EMA")
        tensors = load_file(str(directory / _EMA_WEIGHTS))
        average = self._running()
        with torch.no_grad():
            for i, shadow in enumerate(average.shadow_params):
                shadow.copy_(tensors[f"parameter.{i}"])
            for i, shadow in enumerate(self._buffers):
                shadow.copy_(tensors[f"buffer.{i}"])
        average.optimization_step = json.loads((directory / _EMA_STATE).read_text())["optimization_step"]

    def _running(self) -> EMAModel:
        if self._average is None:
            raise RuntimeError("the moving average starts with training; call start(model) first")
        return self._average

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the average, or take it up where the checkpoint left it."""
        self.start(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step of the average for each optimizer step."""
        images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.update(kwargs["model"], images_per_step, state.global_step * images_per_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add ``ema/`` to the checkpoint."""
        if args.should_save:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with writing_checkpoint(checkpoint):
                self.save(checkpoint / EMA_DIRECTORY, kwargs["model"], kwargs.get("processing_class"))


class ReadableProgress(ProgressCallback):
    """A progress bar and, for every log record, a line of names and numbers: ``step 100: loss 0.412, mIoU_3 0.355``."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write the line above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "train_runtime" not in logs:
            self.training_bar.write(record_line(state.global_step, logs))


def record_line(step: int, logs: Mapping[str, Any]) -> str:
    """A log record as a person reads it; the epoch, which the step already says, is left out."""
    numbers = {
        name: value for name, value in logs.items() if isinstance(value, int | float) and name not in ("epoch", "total_flos")
    }
    return f"step {step}: " + ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in numbers.items())


class MetricsCallback(TrainerCallback):
    """Appends every log record to ``metrics.jsonl``; stops the run when the loss is not finite."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget the records after the step that training goes on from, and the intervals that the run had before."""
        state.compute_steps(args, state.max_steps)
        if state.is_world_process_zero:
            rewind_metrics(args.output_dir, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Append the record."""
        if not state.is_world_process_zero or not logs:
            return
        append_metrics(args.output_dir, {"step": state.global_step, **logs})
        losses = (logs[name] for name in ("loss", "train_loss") if logs.get(name) is not None)
        bad = next((loss for loss in losses if not math.isfinite(loss)), None)
        if bad is not None:
            raise diverged(f"the training loss is {bad}", args.output_dir, state.global_step)


def diverged(what: str, run_directory: str | None, step: int) -> ValueError:
    """The error of a run whose numbers are none any more."""
    return ValueError(
        f"{what} at step {step}; lower the learning rate or clip gradients, in another --out: a run of {run_directory} goes on "
        f"with the settings that it began with"
    )
