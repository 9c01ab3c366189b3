"""Sections that all recipes share: optimizer, schedule, run."""

import math
import os
import re
from dataclasses import dataclass
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

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        expect(0 < self.lr < math.inf, "optim.lr", self.lr, "a positive number")
        expect(0 <= self.weight_decay < math.inf, "optim.weight_decay", self.weight_decay, "0 or more")
        rule = self.no_decay
        expect(
            not isinstance(rule, str) or rule in NO_DECAY, "optim.no_decay", rule, f"{', '.join(NO_DECAY)} or a list of patterns"
        )
        for pattern in () if isinstance(rule, str) else rule:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"recipe field optim.no_decay has {pattern!r}; expected a regular expression: {error}") from None
        expect(self.max_grad_norm >= 0, "optim.max_grad_norm", self.max_grad_norm, "0 or more")
        for name in ("beta1", "beta2"):
            expect(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "a number in [0, 1)")


NO_DECAY = ("norms", "none", "ddp-segmentation", "ddp-depth")
"""Rules by name, see :func:`noise2map.training.optimization.decayed_parameters`."""

POLICIES = ("poly", "cosine", "constant")
"""How the learning rate may fall, see :class:`noise2map.training.LearningRateCurve`."""


@dataclass(frozen=True)
class ScheduleSection:
    """Learning rate over the run, see :class:`noise2map.training.LearningRateCurve`."""

    policy: str = "poly"
    warmup_iterations: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    min_ratio: float = 0.0

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        check_curve(self, "recipe field schedule.")


@dataclass(frozen=True)
class RunSection:
    """A training run, as recipes of maps and of generators have it.

    Attributes:
        iterations: optimizer steps.
        batch_size: samples of a micro-batch in each process.
        accumulation: micro-batches of an optimizer step.
        total_batch: samples of an optimizer step over all processes; sets ``accumulation`` for any number of processes.
        seed: seed of weights, order, augmentation, time steps and noise.
        bf16: bfloat16 autocast.
        compile: ``torch.compile`` the model.
        threads: CPU threads; 0 leaves PyTorch's choice.
        log_every: steps between loss records.
        save_every: steps between checkpoints; a multiple of ``log_every`` so that a resumed curve is the same curve.
        keep: newest checkpoints to keep.
        eval_every: steps between evaluations; 0 for none before the end.
        eval_images: held-out images of an evaluation during training; 0 for all.
        sample_images: images of the sample grid; 0 for none.
        ema_half_life_images: half-life of the averaged weights; 0 for no average.
        ema_warmup_ratio: half-life as a fraction of the images seen, while that is shorter.
    """

    iterations: int = 100_000
    batch_size: int = 16
    accumulation: int = 1
    total_batch: int | None = None
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    threads: int = 0
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    eval_every: int = 1000
    eval_images: int = 0
    sample_images: int = 4
    ema_half_life_images: float = 10_000.0
    ema_warmup_ratio: float | None = 0.1

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        for name in ("iterations", "batch_size", "accumulation", "log_every", "save_every", "keep"):
            expect(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("eval_every", "eval_images", "sample_images", "threads", "ema_half_life_images"):
            expect(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        multiple = self.save_every % self.log_every == 0
        expect(multiple, "train.save_every", self.save_every, f"a multiple of log_every {self.log_every}")
        total, micro = self.total_batch, self.batch_size
        whole = total is None or (total >= micro and total % micro == 0)
        expect(whole, "train.total_batch", total, f"a multiple of batch_size {micro}")
        expect(0 <= self.seed < 2**32, "train.seed", self.seed, "a whole number from 0 to 2**32 - 1")
        warmup = self.ema_warmup_ratio
        expect(warmup is None or 0 < warmup < math.inf, "train.ema_warmup_ratio", warmup, "a positive number, or none")

    def accumulation_for(self, processes: int) -> int:
        """Micro-batches of an optimizer step in each of so many processes.

        Raises:
            ValueError: if ``total_batch`` cannot be shared out.
        """
        if self.total_batch is None:
            return self.accumulation
        share, rest = divmod(self.total_batch, self.batch_size * processes)
        good = share > 0 and rest == 0
        expect(good, "train.total_batch", self.total_batch, f"a multiple of {processes} processes x batch_size {self.batch_size}")
        return share

    def samples_per_step(self, processes: int) -> int:
        """Samples of an optimizer step over so many processes.

        Raises:
            ValueError: if ``total_batch`` cannot be shared out.
        """
        return self.batch_size * self.accumulation_for(processes) * processes


def world_size() -> int:
    """Processes that were started for this run, as launchers tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_curve(curve: Any, prefix: str) -> None:
    """Refuse a learning rate that cannot be, of a recipe or of a curve.

    Args:
        curve: has the fields of :class:`ScheduleSection`.
        prefix: what stands before a field's name in an error.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    for name, good, expected in (
        ("policy", curve.policy in POLICIES, f"one of {', '.join(POLICIES)}"),
        ("warmup_iterations", curve.warmup_iterations >= 0, "0 or more"),
        ("warmup_ratio", 0 < curve.warmup_ratio <= 1, "a number in (0, 1]"),
        ("power", 0 <= curve.power < math.inf, "a finite number of 0 or more"),
        ("min_ratio", 0 <= curve.min_ratio < 1, "a number in [0, 1)"),
    ):
        if not good:
            raise ValueError(f"{prefix}{name} is {getattr(curve, name)!r}; expected {expected}")


def expect(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise the ``ValueError`` of a bad field unless the condition holds."""
    if not condition:
        raise ValueError(f"recipe field {name} is {value!r}; expected {expected}")


def parse_pixels(name: str, text: str | None) -> tuple[int, int] | None:
    """``WIDTHxHEIGHT`` as two numbers; None stays None."""
    if text is None:
        return None
    width, _, height = text.partition("x")
    good = width.isdigit() and height.isdigit() and int(width) > 0 and int(height) > 0
    expect(good, name, text, "WIDTHxHEIGHT, e.g. 160x120")
    return int(width), int(height)
