"""From a recipe to datasets, processor, model and trainer."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, TrainingArguments, set_seed

from noise2map.data.opening import DATASETS
from noise2map.data.transforms import Transform
from noise2map.models import (
    Noise2MapBevProcessor,
    Noise2MapConfig,
    Noise2MapImageProcessor,
)
from noise2map.tasks import TASKS, get_task, task_of
from noise2map.training.encoders.model import JointEncoder
from noise2map.training.maps.data import bev_config, bev_processor, class_names, make_data, make_transform
from noise2map.training.maps.feature_cache import SceneViews, Views
from noise2map.training.maps.frozen_encoder import FrozenEncoderTrainer
from noise2map.training.maps.pretrained import load_backbone
from noise2map.training.maps.recipe import Recipe
from noise2map.training.maps.trainer import MapTrainer
from noise2map.training.optimization import make_arguments, make_curve
from noise2map.zoo import resolve_model

_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def make_processor(recipe: Recipe) -> Noise2MapImageProcessor | Noise2MapBevProcessor:
    """The image processor: resizing to the recipe's image size, or the one of the checkpoint that is fine-tuned."""
    if not get_task(recipe.model.task).of_images:
        if recipe.model.init_from is None:
            return bev_processor(recipe.bev, recipe.image_size())
        _check_checkpoint(recipe.model.init_from)
        return Noise2MapBevProcessor.from_pretrained(recipe.model.init_from)
    if recipe.model.init_from is not None:
        _check_checkpoint(recipe.model.init_from)
        processor = Noise2MapImageProcessor.from_pretrained(recipe.model.init_from)
    else:
        processor = Noise2MapImageProcessor()
    size = recipe.image_size()
    if size is None:
        processor.do_resize = False
    elif recipe.data.keep_ratio:
        processor.size = {"shortest_edge": min(size), "longest_edge": max(size)}
    else:
        processor.size = {"height": size[1], "width": size[0]}
    return processor


def make_config(recipe: Recipe, id2label: Mapping[int, str], from_checkpoint: bool = True) -> Noise2MapConfig:
    """The model's configuration: defaults, then the checkpoint's, the dataset's classes, the recipe's fields.

    Args:
        recipe: the recipe.
        id2label: names of the classes (segmentation).
        from_checkpoint: take the configuration of ``init_from`` as the base; else the recipe alone, without reading a file.
    """
    fields, task = dict(recipe.model.config), get_task(recipe.model.task)
    if isinstance(fields.get("backbone_config"), dict):
        fields["backbone_config"] = backbone_config(fields["backbone_config"], _STAGES if task.of_images else _STAGES[1:])
    if task.has_classes:
        names = {int(key): value for key, value in id2label.items()}
        fields |= {"id2label": names, "label2id": {value: key for key, value in names.items()}}
    if recipe.model.self_aligned:
        fields["self_aligned"] = True
    kind = task.model_class.config_class
    if recipe.model.init_from is not None and from_checkpoint:
        _check_checkpoint(recipe.model.init_from)
        base = kind.from_pretrained(recipe.model.init_from).to_dict()
        # Colors are those of the new data, and what the old weights were calibrated by says nothing about new ones.
        fields = {**base, "palette": None, "calibration": None, **fields}
    return kind(**fields) if task.of_images else bev_config(fields, recipe.image_size())


def _check_checkpoint(name: str) -> None:
    """A path that is not there is reported as such; transformers would look for it on the hub."""
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"recipe field model.init_from is {name!r}; there is no config.json in it")


def backbone_config(fields: dict[str, Any], stages: list[str] | None = None) -> Any:
    """A backbone's configuration from a mapping with ``model_type``.

    Args:
        fields: the mapping.
        stages: stages whose feature maps it gives; by default all four.

    Raises:
        ValueError: for a type that transformers does not know, or a misspelt field.
    """
    stages = _STAGES if stages is None else stages
    fields = dict(fields)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"recipe field model.config.backbone_config.model_type is {kind!r}; expected a model type of transformers")
    known = CONFIG_MAPPING[kind]()
    for name in fields:
        if not hasattr(known, name):
            raise ValueError(f"unknown recipe key model.config.backbone_config.{name}; {kind} has no such field")
    return CONFIG_MAPPING[kind](**{"out_features": stages, **fields})


def make_model(recipe: Recipe, dataset: Any) -> nn.Module:
    """A fresh model from the seed, or the checkpoint of ``init_from`` with the recipe's changes.

    Raises:
        OSError: if pretrained weights cannot be found.
        ValueError: if the checkpoint of ``init_from``, or the encoder of ``encoder_from`` or ``backbone_from``, has other sizes
            than the recipe's.
    """
    task = get_task(recipe.model.task)
    kind, config = task.model_class, make_config(recipe, dataset.id2label if task.has_classes else {})
    if task.has_classes and task.of_images and len(dataset.palette) == config.num_labels:
        config.palette = ["#{:02x}{:02x}{:02x}".format(*color) for color in dataset.palette.tolist()]
    set_seed(recipe.train.seed)
    if recipe.model.init_from is not None:
        try:
            return kind.from_pretrained(recipe.model.init_from, config=config)
        except RuntimeError as error:
            names = sorted(set(re.findall(r"^(\S+)\s*\|\s*MISMATCH", str(error), re.MULTILINE)))
            raise ValueError(
                f"model.init_from {recipe.model.init_from!r} has weights of other shapes than the recipe's model with "
                f"{config.num_labels} classes{': ' + ', '.join(names[:3]) if names else ''}; for other classes take its image "
                "encoder alone: model.encoder_from"
            ) from error
    model = kind(config)
    if recipe.model.backbone_from is not None:
        load_backbone(_backbone_of(model), recipe.model.backbone_from)
    if recipe.model.encoder_from is not None:
        copy_encoder(recipe.model.encoder_from, model)
    return model


def _backbone_of(model: nn.Module) -> nn.Module:
    if task_of(model).of_images:
        return model.encoder.backbone
    if model.encoder.camera is None:
        raise ValueError(f"the model's sensors are {list(model.config.sensors)}; expected a camera to start a backbone for")
    return model.encoder.camera.backbone


def copy_encoder(source: str, model: nn.Module) -> None:
    """Copy a trained encoder into a model of this library, or the backbone of an image encoder into one of bird's-eye-view maps.

    Args:
        source: shipped name, folder or hub id of a map model, or of a `JointEncoder`; of a bird's-eye-view model only for another
            with the same sensors.
        model: changed in place.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if it is of another kind, or its encoder has other sizes.
    """
    source = resolve_model(source)
    architectures = Noise2MapConfig.get_config_dict(source)[0].get("architectures")
    of_images = task_of(model).of_images
    kinds = [JointEncoder, *(task.model_class for task in TASKS.values() if task.of_images or not of_images)]
    kind = next((kind for kind in kinds if [kind.__name__] == architectures), None)
    if kind is None:
        expected = "a map model of images, or an encoder" if of_images else "a map model, or an encoder"
        raise ValueError(f"model.encoder_from {source} holds {architectures}; expected {expected}")
    encoder = kind.from_pretrained(source).encoder
    try:
        if of_images or kind is type(model):
            model.encoder.load_state_dict(encoder.state_dict())
        else:  # of bird's-eye-view maps, whose backbone has fewer outputs and fewer norms of outputs
            backbone, given = _backbone_of(model), encoder.backbone.state_dict()
            backbone.load_state_dict({name: given[name] for name in backbone.state_dict() if name in given})
    except RuntimeError as error:
        raise ValueError(f"model.encoder_from {source} has an encoder of other sizes than the recipe's: {error}") from error


def _arguments(recipe: Recipe, run_directory: str | Path) -> TrainingArguments:
    # The window of the augmentation has one size, the images of the validation set may have many.
    single = 1 if recipe.data.crop is not None else None
    return make_arguments(recipe.train, recipe.optim, run_directory, eval_batch_size=single, workers=recipe.data.workers)


def frozen_fields(recipe: Recipe, transform: Transform) -> dict[str, Any]:
    """Further arguments of the trainer of a recipe whose encoder is frozen.

    Args:
        recipe: the recipe.
        transform: its augmentation, which draws the views of surround samples.
    """
    count = recipe.train.cache_views
    views: Views | SceneViews
    if DATASETS[recipe.data.name].images:
        views = Views(count, recipe.data.flip > 0, recipe.hiding())
    else:
        views = SceneViews(count, transform, f"{asdict(recipe.bev)}, {recipe.data.size}, photometric {recipe.data.photometric}")
    return {"cache_folder": recipe.train.cache_features, "views": views, "window": recipe.train.window_size()}


def make_trainer(recipe: Recipe, run_directory: str | Path) -> MapTrainer:
    """Everything a recipe describes, ready to train.

    Raises:
        OSError: if data or a checkpoint is missing.
        ValueError: if a value of the recipe cannot work.
    """
    train = recipe.train
    if train.threads:
        torch.set_num_threads(train.threads)
    names = {} if get_task(recipe.model.task).of_images else class_names(recipe)
    train_set, val_set = make_data(recipe, make_config(recipe, names) if names else None)
    model, arguments = make_model(recipe, train_set), _arguments(recipe, run_directory)
    if train.sync_batch_norm and arguments.world_size > 1 and torch.cuda.is_available():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    transform, kind, fields = make_transform(recipe, train_set), MapTrainer, {}
    if recipe.model.freeze_encoder:
        kind, fields = FrozenEncoderTrainer, frozen_fields(recipe, transform)
    return kind(
        model,
        arguments,
        **fields,
        train_dataset=train_set,
        eval_dataset=val_set,
        processing_class=make_processor(recipe),
        transform=transform,
        resize_training=recipe.data.crop is None and train.cache_window is None,
        curve=make_curve(recipe.schedule, train.iterations),
        no_decay=recipe.optim.no_decay,
        eval_steps=train.eval_steps,
        eval_images=train.eval_images or None,
        sample_images=train.sample_images,
        ema_half_life_images=train.ema_half_life_images or None,
        ema_warmup_ratio=train.ema_warmup_ratio,
    )
