"""Dry run of a recipe, without weights and without data: parameters, memory, arithmetic, length."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from noise2map.models.denoising import input_channels
from noise2map.runs.words import duration
from noise2map.tasks import get_task, task_of
from noise2map.training.maps.build import make_config
from noise2map.training.maps.data import class_names
from noise2map.training.maps.recipe import FOLDERS, Recipe
from noise2map.training.optimization import decayed_parameters
from noise2map.training.recipe_sections import world_size

_GIB = 2**30


@dataclass
class DryRun:
    """Summary of what a recipe would train.

    Attributes:
        task: name of the task.
        parameters: of the model, with the auxiliary head, which only trains.
        encoder_parameters: of the image encoder.
        decayed: of those that weight decay shrinks.
        steps: optimizer steps.
        micro_batch: samples that go through the model together.
        accumulation: micro-batches of a step in each process.
        processes: processes.
        size: width and height of a training image in pixels; ``None`` where the images decide.
        state_bytes: weights, gradients, two moments of AdamW, averaged weights.
        activation_bytes: what the forward pass of a micro-batch keeps for the backward pass; 0 if the size is unknown.
        step_flops: floating-point operations of a step over all processes, forward and backward; 0 if the size is unknown.
        remarks: what is not there yet, or will be loaded.
    """

    task: str
    parameters: int
    encoder_parameters: int
    decayed: int
    steps: int
    micro_batch: int
    accumulation: int
    processes: int
    size: tuple[int, int] | None
    state_bytes: int
    activation_bytes: int = 0
    step_flops: float = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Samples of an optimizer step over all processes."""
        return self.micro_batch * self.accumulation * self.processes

    def text(self) -> str:
        """Lines for the screen."""
        everything, encoder, decayed = (count / 1e6 for count in (self.parameters, self.encoder_parameters, self.decayed))
        processes = f"{self.processes} process{'es' * (self.processes != 1)}"
        share = f"micro-batch {self.micro_batch} x accumulation {self.accumulation} x {processes}"
        images = get_task(self.task).of_images
        things = "images" if images else "samples"
        lines = [
            f"{self.task}: {everything:.2f}M parameters, {encoder:.2f}M in the image encoder; weight decay on {decayed:.2f}M",
            f"{self.steps} steps of {self.batch} {things} ({share}), {self.steps * self.batch} in all",
        ]
        memory = f"memory: {self.state_bytes / _GIB:.2f} GiB of weights, gradients and optimizer"
        if not images:
            lines.append(f"{memory}; activations depend on the rig and are not estimated")
        elif self.size is None:
            lines.append(f"{memory}; activations depend on the size of the images (data.size none)")
        else:
            total = (self.state_bytes + self.activation_bytes) / _GIB
            activations = (
                f"{self.activation_bytes / _GIB:.2f} GiB of activations ({self.micro_batch} x {self.size[0]}x{self.size[1]})"
            )
            lines.append(f"{memory} + {activations} = about {total:.1f} GiB")
            hours = duration(self.steps * self.step_flops / 1e13)
            lines.append(f"arithmetic: {self.step_flops / 1e12:.2f} TFLOP a step; {hours} in all at 10 TFLOP/s sustained")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def dry_run(recipe: Recipe) -> DryRun:
    """Builds the recipe's model without weights and looks at a training step without computing it.

    Raises:
        ValueError: if a value of the recipe cannot work.
    """
    model = empty_model(recipe)
    processes = world_size()
    named = dict(model.named_parameters())
    parameters = sum(parameter.numel() for parameter in named.values())
    copies = 4 + bool(recipe.train.ema_half_life_images)
    result = DryRun(
        task=recipe.model.task,
        parameters=parameters,
        encoder_parameters=sum(parameter.numel() for parameter in model.encoder.parameters()),
        decayed=sum(named[name].numel() for name in decayed_parameters(model, recipe.optim.no_decay)),
        steps=recipe.train.iterations,
        micro_batch=recipe.train.batch_size,
        accumulation=recipe.train.accumulation_for(processes),
        processes=processes,
        size=_training_size(recipe),
        state_bytes=4 * copies * parameters,
        remarks=_remarks(recipe),
    )
    if result.size is not None:
        kept, flops = measure_step(model, recipe.train.batch_size, result.size)
        result.activation_bytes = kept // 2 if recipe.train.bf16 else kept
        result.step_flops = 3.0 * flops * result.accumulation * processes  # backward costs twice the forward
    return result


def empty_model(recipe: Recipe) -> Any:
    """The recipe's model on the meta device: every shape, no weight, no file read."""
    config = make_config(recipe, class_names(recipe), from_checkpoint=False)
    with torch.device("meta"):
        return get_task(recipe.model.task).model_class(config)


def _training_size(recipe: Recipe) -> tuple[int, int] | None:
    if not get_task(recipe.model.task).of_images:
        return None
    if recipe.crop_size() is not None:
        return recipe.crop_size()
    return None if recipe.data.keep_ratio else recipe.image_size()


def measure_step(model: Any, batch_size: int, size: tuple[int, int]) -> tuple[int, int]:
    """Bytes that a training forward pass keeps for the backward pass, and its floating-point operations.

    Args:
        model: a map model on the meta device.
        batch_size: images.
        size: their width and height in pixels.
    """
    width, height = size
    task = task_of(model)
    pixels = torch.empty(batch_size, 3, height, width, device="meta")
    kind = torch.int64 if task.has_classes else torch.float32
    labels = torch.empty(batch_size, height, width, device="meta", dtype=kind)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    counter = FlopCounterMode(display=False)
    model.train()
    with kept_bytes(own) as kept, counter:
        _forward(model, pixels, labels)
    return sum(kept.values()), counter.get_total_flops()


def _forward(model: Any, pixels: Tensor, labels: Tensor) -> Tensor:
    features = model.encode_image(pixels)
    context = model.decoder.prepare(features)
    batch_size, _, height, width = features.shape
    noisy = torch.empty(batch_size, input_channels(model.config, model.codec.channels), height, width, device="meta")
    modulations = model.decoder.modulations(torch.empty(batch_size, device="meta"))
    prediction = model.head(model.decoder(context, noisy, modulations), context.size)
    enlarged = nn.functional.interpolate(prediction, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    if not task_of(model).has_classes:
        return (enlarged[:, 0].log() - labels.log()).square().mean()
    loss = nn.functional.cross_entropy(enlarged, labels)
    return loss if model.auxiliary_head is None else loss + model.auxiliary_loss(features, labels)


@contextmanager
def kept_bytes(own: set[int]) -> Iterator[dict[int, int]]:
    """Storages saved for the backward pass while inside, and their bytes; the model's own parameters are left out."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed could pass its address on

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _remarks(recipe: Recipe) -> list[str]:
    data, model, remarks = recipe.data, recipe.model, []
    folders = [data.train, data.val] if data.name in FOLDERS else [data.root or ""]
    remarks += [f"no folder {folder} yet" for folder in dict.fromkeys(folders) if not Path(folder).is_dir()]
    if model.init_from is not None:
        there = (Path(model.init_from) / "config.json").is_file()
        remarks.append(f"starts from {model.init_from}" + ("" if there else ", which is not there yet"))
    elif model.backbone_from is not None:
        remarks.append(f"the backbone starts from {model.backbone_from}")
    elif model.encoder_from is not None:
        remarks.append(f"the image encoder starts from {model.encoder_from}")
    return remarks
