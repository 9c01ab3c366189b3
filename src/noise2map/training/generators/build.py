"""From a recipe of a generator or a depth prior to datasets, model and trainer."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import set_seed

from noise2map.data.center_crop import CenterCrops
from noise2map.data.freedoom.dataset import split_folder
from noise2map.data.opening import open_dataset
from noise2map.data.subsets import Subset, hold_out
from noise2map.data.transforms import HorizontalFlip
from noise2map.guidance import DepthPrior, decoder_blocks
from noise2map.guidance.depth_range import DepthRange
from noise2map.training.generators.recipe import GeneratorRecipe
from noise2map.training.generators.samples import DrawnSamplesCallback
from noise2map.training.generators.trainer import DepthCollator, GeneratorTrainer, ImageCollator, UNetWithLoss
from noise2map.training.optimization import make_arguments, make_curve
from noise2map.training.recipe_sections import world_size


def make_datasets(recipe: GeneratorRecipe) -> tuple[CenterCrops, CenterCrops]:
    """The training and the held-out images.

    Raises:
        OSError: if a directory is missing.
        ValueError: if it holds no images, or too few to hold some out.
    """
    data = recipe.data
    train = _open(recipe, data.train, "train")
    if data.val is not None:
        val = _open(recipe, data.val, "val")
    else:
        if len(train) < 2:
            raise ValueError(f"{data.train} holds {len(train)} image; expected at least 2, one of which is held out")
        train, val = hold_out(train, min(data.hold_out_every, len(train)))
    return _center_crops(recipe, train), _center_crops(recipe, val)


def _center_crops(recipe: GeneratorRecipe, dataset: Any) -> CenterCrops:
    limit = recipe.data.limit
    if limit is not None and limit < len(dataset):
        dataset = Subset(dataset, list(range(limit)))
    return CenterCrops(dataset, recipe.data.size, (recipe.model.target,))


def _open(recipe: GeneratorRecipe, root: str, split: str) -> Any:
    data = recipe.data
    if data.name == "lsun":
        return open_dataset("lsun", root, split, category=data.category, limit=data.limit)
    if data.name == "folder":
        return open_dataset("images" if recipe.model.target == "image" else "depth-maps", root, depth_scale=data.depth_scale)
    return open_dataset("freedoom", split_folder(root, split), task=recipe.model.target)


def make_generator_model(recipe: GeneratorRecipe, intrinsics: Any = None) -> UNetWithLoss:
    """A fresh model from the seed, or that of ``model.init_from``.

    Raises:
        OSError: if ``init_from`` cannot be found.
        ValueError: if it has another size or another kind than the recipe, or an argument of the U-Net is impossible.
    """
    model, size = recipe.model, recipe.data.size
    channels = 3 if model.target == "image" else 1
    set_seed(recipe.train.seed)
    ranges = {
        "min_depth": model.min_depth,
        "max_depth": model.max_depth,
        "depth_representation": model.depth_representation,
    }
    if model.init_from is not None:
        return _start_from(recipe, model.init_from, intrinsics, ranges)
    fields = {**model.unet, "in_channels": channels, "out_channels": channels, "sample_size": size}
    try:
        if model.target == "depth":
            prior = DepthPrior(unet_config=fields, scheduler_config=model.scheduler, **ranges)
            return UNetWithLoss(prior.unet, prior.scheduler, prior, intrinsics, recipe.train.channels_last)
        scheduler = DDPMScheduler(**{"timestep_spacing": "trailing", **model.scheduler})  # runs begin where no signal is left
        return UNetWithLoss(UNet2DModel(**fields), scheduler, None, intrinsics, recipe.train.channels_last)
    except TypeError as error:
        raise ValueError(f"recipe section model: {error}") from error


def _start_from(recipe: GeneratorRecipe, source: str, intrinsics: Any, ranges: dict[str, Any]) -> UNetWithLoss:
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise FileNotFoundError(f"recipe field model.init_from is {source!r}; there is no such folder")
    if recipe.model.target == "depth":
        prior = DepthPrior.from_pretrained(source)
        if prior.depth_range != DepthRange(*ranges.values()):
            raise ValueError(f"model.init_from {source!r} was trained on {prior.depth_range}; the recipe says {ranges}")
        model = UNetWithLoss(prior.unet, prior.scheduler, prior, intrinsics, recipe.train.channels_last)
    else:
        pipeline = DDPMPipeline.from_pretrained(source)
        model = UNetWithLoss(pipeline.unet, pipeline.scheduler, None, intrinsics, recipe.train.channels_last)
    if model.unet.config.sample_size != recipe.data.size:
        raise ValueError(f"model.init_from {source!r} has {model.unet.config.sample_size} px; data.size is {recipe.data.size}")
    return model


def make_generator_trainer(recipe: GeneratorRecipe, run_directory: str | Path) -> GeneratorTrainer:
    """Everything a recipe describes, ready to train.

    Raises:
        OSError: if data or a checkpoint is missing.
        ValueError: if a value of the recipe cannot work.
    """
    train = recipe.train
    if train.threads:
        torch.set_num_threads(train.threads)
    train_set, val_set = make_datasets(recipe)
    model = make_generator_model(recipe, train_set[0].get("intrinsics"))
    depth = recipe.model.target == "depth"
    depth_range = DepthRange(recipe.model.min_depth, recipe.model.max_depth, recipe.model.depth_representation)
    return GeneratorTrainer(
        model,
        make_arguments(train, recipe.optim, run_directory, workers=recipe.data.workers),
        train_dataset=train_set,
        eval_dataset=val_set,
        data_collator=DepthCollator(depth_range, recipe.data.missing) if depth else ImageCollator(),
        transform=HorizontalFlip(recipe.data.flip),
        curve=make_curve(recipe.schedule, train.iterations),
        no_decay=recipe.optim.no_decay,
        eval_images=train.eval_images or None,
        ema_half_life_images=train.ema_half_life_images or None,
        ema_warmup_ratio=train.ema_warmup_ratio,
        callbacks=[DrawnSamplesCallback(train.sample_images, train.sample_steps, train.seed)],
    )


def dry_run(recipe: GeneratorRecipe) -> str:
    """Summary of a recipe: parameters, decoder blocks, arithmetic; no data is needed."""
    if recipe.model.init_from is not None:
        return f"starts from {recipe.model.init_from}"
    unet = make_generator_model(recipe).unet.to("meta")
    image = torch.empty(1, unet.config.in_channels, recipe.data.size, recipe.data.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(image, torch.zeros(1, dtype=torch.long, device="meta"))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    forward = counter.get_total_flops()
    step = 3 * forward * recipe.train.samples_per_step(world_size())
    return (
        f"{parameters / 1e6:.2f}M parameters ({parameters * 2 / 1e6:.1f} MB in fp16), {len(decoder_blocks(unet))} decoder blocks; "
        f"{forward / 1e9:.2f} GFLOP a forward pass of one image, {step / 1e12:.2f} TFLOP a training step"
    )
