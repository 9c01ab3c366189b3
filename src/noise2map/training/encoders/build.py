"""From a recipe of an encoder to datasets, model and trainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from noise2map.data.freedoom.dataset import open_rendered, split_folder
from noise2map.data.transforms import Compose, HorizontalFlip, Photometric, Transform
from noise2map.models import Noise2MapConfig, Noise2MapImageProcessor
from noise2map.training.encoders.model import JointEncoder
from noise2map.training.encoders.recipe import EncoderRecipe
from noise2map.training.encoders.trainer import EncoderTrainer
from noise2map.training.maps.build import backbone_config, copy_encoder
from noise2map.training.optimization import make_arguments, make_curve


def make_encoder_model(recipe: EncoderRecipe, id2label: dict[int, str]) -> JointEncoder:
    """A fresh model from the seed, its encoder that of ``model.encoder_from`` if the recipe names one.

    Raises:
        OSError: if that cannot be found.
        ValueError: if a field of the configuration cannot work.
    """
    fields = dict(recipe.model.config)
    if isinstance(fields.get("backbone_config"), dict):
        fields["backbone_config"] = backbone_config(fields["backbone_config"])
    fields |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
    set_seed(recipe.train.seed)
    model = JointEncoder(Noise2MapConfig(**fields))
    if recipe.model.encoder_from is not None:
        copy_encoder(recipe.model.encoder_from, model)
    return model


def make_encoder_transform(recipe: EncoderRecipe) -> Transform:
    """The augmentation of training samples: mirroring, colors, and covered parts. Nothing is magnified: depth is metric."""
    data = recipe.data
    transforms: list[Any] = [HorizontalFlip(data.flip)]
    if data.photometric:
        transforms.append(Photometric(data.photometric, data.photometric, data.photometric, data.photometric / 2))
    hide = recipe.hiding()
    return Compose(transforms if hide is None else [*transforms, hide])


def make_encoder_trainer(recipe: EncoderRecipe, run_directory: str | Path) -> EncoderTrainer:
    """Everything a recipe describes, ready to train.

    Raises:
        OSError: if data or a checkpoint is missing.
        ValueError: if a value of the recipe cannot work.
    """
    train, data = recipe.train, recipe.data
    if train.threads:
        torch.set_num_threads(train.threads)
    train_set = open_rendered(split_folder(data.train, "train"), None, "all", classes=data.classes, limit=data.train_limit or None)
    val_set = open_rendered(split_folder(data.val, "val"), None, "all", classes=data.classes)
    size = recipe.image_size()
    processor = Noise2MapImageProcessor(**({} if size is None else {"size": {"height": size[1], "width": size[0]}}))
    processor.do_resize = size is not None
    return EncoderTrainer(
        make_encoder_model(recipe, train_set.id2label),
        make_arguments(train, recipe.optim, run_directory, workers=data.workers),
        train_dataset=train_set,
        eval_dataset=val_set,
        processing_class=processor,
        transform=make_encoder_transform(recipe),
        curve=make_curve(recipe.schedule, train.iterations),
        no_decay=recipe.optim.no_decay,
        eval_images=train.eval_images or None,
        ema_half_life_images=train.ema_half_life_images or None,
        ema_warmup_ratio=train.ema_warmup_ratio,
    )
