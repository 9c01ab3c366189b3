"""Sections that all recipes share: optimiser, schedule, run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimSection:
    """AdamW.

    Attributes:
        lr: base learning rate; self-aligned fine-tuning usually takes a tenth (6e-6).
        weight_decay: decoupled weight decay.
        no_decay: ``norms``, ``none``, ``ddp-segmentation``, ``ddp-depth`` (as the published runs) or a list of regular
            expressions of parameter names without decay.
        beta1: decay of the gradient's mean.
        beta2: decay of the gradient's square.
        max_grad_norm: L2 norm to which gradients are clipped; 0 for no clipping.
    """

    lr: float = 6e-5
    weight_decay: float = 0.01
    no_decay: str | list[str] = "norms"
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class ScheduleSection:
    """Learning rate over the run, see :class:`noise2map.training.LearningRateCurve`."""

    policy: str = "poly"
    warmup_iterations: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    min_ratio: float = 0.0


@dataclass(frozen=True)
class TrainSection:
    """The run.

    Attributes:
        iterations: optimiser steps.
        batch_size: samples of a micro-batch in each process.
        accumulation: micro-batches of an optimiser step.
        total_batch: samples of an optimiser step over all processes; sets ``accumulation`` for any number of processes.
        sync_batch_norm: batch statistics over all processes (CUDA, several processes).
        seed: seed of weights, order, augmentation and noise.
        bf16: bfloat16 autocast.
        compile: ``torch.compile`` the model.
        threads: CPU threads; 0 leaves PyTorch's choice.
        log_every: steps between loss records.
        save_every: steps between checkpoints; a multiple of ``log_every`` so that a resumed curve is the same curve.
        keep: newest checkpoints to keep.
        eval_every: steps between evaluations; 0 for none before the end.
        eval_steps: numbers of decoder calls to evaluate.
        eval_images: validation images of the evaluations during training; 0 for all. The last evaluation takes all.
        sample_images: rows of the sample picture.
        ema_half_life_images: half-life of the averaged weights; 0 for no average.
        ema_warmup_ratio: half-life as a fraction of the images seen, while that is shorter.
    """

    iterations: int = 160_000
    batch_size: int = 16
    accumulation: int = 1
    total_batch: int | None = None
    sync_batch_norm: bool = False
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    threads: int = 0
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    eval_every: int = 1000
    eval_steps: list[int] = field(default_factory=lambda: [1, 3, 10])
    eval_images: int = 0
    sample_images: int = 4
    ema_half_life_images: float = 10_000.0
    ema_warmup_ratio: float | None = 0.1


def expect(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise the ``ValueError`` of a bad field unless the condition holds."""
    if not condition:
        raise ValueError(f"recipe field {name} is {value!r}; expected {expected}")


def check_pixels(name: str, text: str | None) -> tuple[int, int] | None:
    """``WIDTHxHEIGHT`` as two numbers; None stays None."""
    if text is None:
        return None
    width, _, height = text.partition("x")
    good = width.isdigit() and height.isdigit() and int(width) > 0 and int(height) > 0
    expect(good, name, text, "WIDTHxHEIGHT, e.g. 160x120")
    return int(width), int(height)
