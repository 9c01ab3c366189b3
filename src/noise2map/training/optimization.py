"""Optimization of a run: learning-rate curve, weight-decay groups, training arguments."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from noise2map.training.recipe_sections import OptimSection, RunSection, ScheduleSection, check_curve, world_size

# Patterns of the published runs, by our names. They match the word "norm" in the names of the public code, and in segmentation a
# rule for "head" wins over it: there the norms of the map decoder are decayed, and in both tasks so are all norms whose name lacks
# the word (pyramid, auxiliary head, stem and downsampling of ConvNeXt).
_BACKBONE_NORMS = r"^encoder\.backbone\.(swin\..*norm|hidden_states_norms\.|encoder\.stages\.\d+\.layers\.\d+\.layernorm\.)"

PUBLISHED_RULES = {
    "ddp-segmentation": [_BACKBONE_NORMS],
    "ddp-depth": [_BACKBONE_NORMS, r"relative_position_bias_table$", r"^decoder\.layers\.\d+\.(attention|ffn)_norm\."],
}

_UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)


def decayed_parameters(model: nn.Module, no_decay: str | Sequence[str] = "norms") -> list[str]:
    """Names of the parameters that weight decay shrinks.

    Args:
        model: any module.
        no_decay: ``"norms"`` exempts normalisations, embedding tables, biases and every other vector or scalar (layer
            scales); ``"none"`` exempts nothing; ``"ddp-segmentation"`` and ``"ddp-depth"`` exempt what the published runs do
            (Swin and ConvNeXt); a list of regular expressions exempts the names that one of them matches (searched anywhere
            in the name).

    Raises:
        ValueError: for another string, a pattern that is not a regular expression, or a published rule that matches no norm of
            the model's backbone.
    """
    names = [name for name, _ in model.named_parameters()]
    if no_decay == "none":
        return names
    if no_decay == "norms":
        exempt = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(module, _UNDECAYED_MODULES) or parameter.ndim < 2
        }
        return [name for name in names if name not in exempt]
    if isinstance(no_decay, str):
        if no_decay not in PUBLISHED_RULES:
            rules = ", ".join(map(repr, PUBLISHED_RULES))
            raise ValueError(f"no_decay is {no_decay!r}; expected 'norms', 'none', {rules} or a list of regular expressions")
        if not any(re.search(_BACKBONE_NORMS, name) for name in names):
            raise ValueError(f"no_decay is {no_decay!r}, which knows the norms of Swin and ConvNeXt; this model has neither")
        no_decay = PUBLISHED_RULES[no_decay]
    try:
        patterns = [re.compile(pattern) for pattern in no_decay]
    except re.error as error:
        raise ValueError(f"no_decay pattern {error.pattern!r} is not a regular expression: {error}") from None
    return [name for name in names if not any(pattern.search(name) for pattern in patterns)]


@dataclass(frozen=True)
class LearningRateCurve:
    """The learning rate, as a factor of the base rate, at every iteration.

    Attributes:
        policy: ``"poly"`` (``(1 - it / iterations) ** power``), ``"cosine"`` (half a cosine) or ``"constant"``.
        iterations: length of the run in optimizer steps.
        warmup_iterations: length of the linear warm-up in optimizer steps; 0 for none.
        warmup_ratio: factor at iteration 0, in (0, 1].
        power: exponent of the poly curve, 0 or more.
        min_ratio: the floor of the decay, as a fraction of the base rate, in [0, 1).

    Raises:
        ValueError: for a policy that does not exist or a number out of its range.
    """

    policy: str = "poly"
    iterations: int = 160_000
    warmup_iterations: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"schedule iterations is {self.iterations}; expected at least 1")
        check_curve(self, "schedule ")

    def factor(self, iteration: int) -> float:
        """The factor of the base rate used by the optimizer step number ``iteration`` (0-based)."""
        progress = min(iteration / self.iterations, 1.0)
        if self.policy == "poly":
            regular = self.min_ratio + (1 - self.min_ratio) * (1 - progress) ** self.power
        elif self.policy == "cosine":
            regular = self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        else:
            regular = 1.0
        if iteration < self.warmup_iterations:
            regular *= 1 - (1 - iteration / self.warmup_iterations) * (1 - self.warmup_ratio)
        return regular

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """A PyTorch scheduler over every parameter group of ``optimizer``."""
        curve: Callable[[int], float] = self.factor
        return LambdaLR(optimizer, curve)


def make_arguments(
    train: RunSection,
    optim: OptimSection,
    run_directory: str | Path,
    *,
    eval_batch_size: int | None = None,
    workers: int = 0,
    use_cpu: bool | None = None,
) -> TrainingArguments:
    """transformers' training arguments of a recipe.

    Args:
        train: the recipe's run.
        optim: its optimizer.
        run_directory: where to.
        eval_batch_size: images at a time when scores are taken; by default as many as in training.
        workers: processes that load data.
        use_cpu: train on the CPU; by default where there is no accelerator.

    Raises:
        ValueError: if the batch cannot be shared out to the processes that were started.
    """
    return TrainingArguments(
        output_dir=str(run_directory),
        max_steps=train.iterations,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size if eval_batch_size is None else eval_batch_size,
        gradient_accumulation_steps=train.accumulation_for(world_size()),
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        max_grad_norm=optim.max_grad_norm,
        optim="adamw_torch_fused",
        seed=train.seed,
        data_seed=train.seed,
        bf16=train.bf16,
        torch_compile=train.compile,
        use_cpu=not torch.accelerator.is_available() if use_cpu is None else use_cpu,
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_every,
        save_total_limit=train.keep,
        eval_strategy="steps" if train.eval_every else "no",
        eval_steps=train.eval_every or None,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        report_to="none",
    )


def make_curve(schedule: ScheduleSection, iterations: int) -> LearningRateCurve:
    """The learning rate over a run of so many optimizer steps."""
    return LearningRateCurve(
        policy=schedule.policy,
        iterations=iterations,
        warmup_iterations=schedule.warmup_iterations,
        warmup_ratio=schedule.warmup_ratio,
        power=schedule.power,
        min_ratio=schedule.min_ratio,
    )
