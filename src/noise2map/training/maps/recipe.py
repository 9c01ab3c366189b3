"""Recipe of a map model: its data, model, run and, for bird's-eye-view maps, sensors.

A recipe has the sections ``data``, ``model``, ``optim``, ``schedule``, ``train`` and ``bev`` and states only what differs from the
defaults, or from the recipe that it names as its ``base``.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.freedoom.surround import CELLS
from noise2map.data.opening import DATASETS, dataset_names
from noise2map.data.transforms import Hide
from noise2map.tasks import TASKS
from noise2map.training.recipe_files import load_as, make_as
from noise2map.training.recipe_sections import OptimSection, RunSection, ScheduleSection, expect, parse_pixels


@dataclass(frozen=True)
class BevSection:
    """Sensors and augmentation of bird's-eye-view maps; the grids are those of ``model.config``.

    Attributes:
        sweeps: most LiDAR sweeps before each key frame.
        cells: which cells of freedoom-surround are labelled: ``visible``, or ``all``, so that the model learns what nobody sees.
        image_scale: size of the network's images over the original ones, at evaluation; then ``data.size`` is cut, centred
            across, at the bottom.
        augment_image_scale: range of that scale in training.
        augment_image_flip: probability of mirroring an image.
        augment_image_rotate_deg: largest rotation of an image.
        augment_scene_scale: range of the scene's scale.
        augment_scene_rotate_deg: largest rotation of the scene.
        augment_scene_shift_m: standard deviation of its shift.
        augment_scene_flip: probability of mirroring it along each of x and y.
    """

    sweeps: int = 9
    cells: str = "visible"
    image_scale: float = 0.48
    augment_image_scale: list[float] = field(default_factory=lambda: [0.38, 0.55])
    augment_image_flip: float = 0.5
    augment_image_rotate_deg: float = 5.4
    augment_scene_scale: list[float] = field(default_factory=lambda: [0.9, 1.1])
    augment_scene_rotate_deg: float = 45.0
    augment_scene_shift_m: float = 0.5
    augment_scene_flip: float = 0.5

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        for name in ("augment_image_scale", "augment_scene_scale"):
            pair = getattr(self, name)
            self._expect(len(pair) == 2 and 0 < pair[0] <= pair[1], name, "[low, high]")
        for name in ("augment_image_flip", "augment_scene_flip"):
            self._expect(0 <= getattr(self, name) <= 1, name, "a probability")
        for name in ("sweeps", "augment_scene_shift_m", "augment_image_rotate_deg", "augment_scene_rotate_deg"):
            self._expect(getattr(self, name) >= 0, name, "0 or more")
        self._expect(self.cells in CELLS, "cells", " or ".join(CELLS))
        self._expect(self.image_scale > 0, "image_scale", "a positive number")

    def _expect(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"recipe field bev.{name} is {getattr(self, name)!r}; expected {expected}")


FOLDERS = ("freedoom", "folder")

"""Datasets of which `data.train` and `data.val` are folders; of the others they are splits of the folder `data.root`."""

CELL = 4
"""Pixels of an image in a cell of its features."""

TRANSFORMS = ("default", "ade20k", "cityscapes", "kitti", "nyu")


@dataclass(frozen=True)
class DataSection:
    """Section of the data.

    Attributes:
        name: kind of dataset: ``freedoom`` (rendered frames), ``folder`` (``images/`` and ``maps/``), or a public one in its
            released layout: ``ade20k``, ``cityscapes``, ``kitti``, ``nyu``, ``nyu-labelled``, ``sun-rgbd``; for bird's-eye-view
            maps ``nuscenes`` or ``freedoom-surround``.
        root: directory of a public dataset.
        train: directory of the training samples; of a public dataset the split (a name or a list file).
        val: directory or split of the validation samples.
        classes: number of Freedoom classes, 10 or 8.
        train_limit: train on the first so many samples alone; 0 for all.
        hold_out_every: where ``train`` and ``val`` are one folder, every so many-th pair is for validation alone.
        class_names: names of a folder's classes in the order of their ids; by default those of its ``classes.json``.
        depth_scale: metres in a unit of a folder's depth maps (0.001 for millimetres, 0.00390625 for KITTI).
        size: image size ``WxH`` that the network sees; ``none`` for the images' own (all of one size).
        keep_ratio: ``size`` is a frame ``LONGxSHORT`` that images are fitted into, whichever way they lie.
        transform: family of the augmentation: ``default`` (the next three fields), or that of the published runs on ``ade20k``,
            ``cityscapes``, ``kitti`` or ``nyu``, which cut windows of ``crop`` out of images scaled about ``size``.
        crop: size ``WxH`` of those windows.
        flip: probability of mirroring.
        crop_scale: range of the random window's side (segmentation only); ``none`` for no crops.
        photometric: half-width of the color factors; 0 for none. Of bird's-eye views that of brightness: contrast and saturation
            change by up to 0.2, gamma by 0.1, as the shipped models were trained.
        hide: what of each image is covered with grey, truth kept: ``none``, ``rectangle``, ``strips``, ``window`` (all but it) or
            ``mixed``, in training and validation; drawn anew in each epoch, and by the id in validation.
        hide_probability: share of the training images that are covered; all validation images are.
        hide_height: range of the covered share of the height, see :class:`~noise2map.data.transforms.Hide`.
        hide_width: likewise of the width.
        skip_broken: how many unreadable training samples to skip, each named in a warning; 0 stops at the first.
        workers: processes that load data; 0 loads in the training process.
    """

    name: str = "freedoom"
    root: str | None = None
    train: str = "data/freedoom/train"
    val: str = "data/freedoom/val"
    train_limit: int = 0
    hold_out_every: int = 0
    classes: int = 10
    class_names: list[str] | None = None
    depth_scale: float = 0.001
    size: str | None = "160x120"
    keep_ratio: bool = False
    transform: str = "default"
    crop: str | None = None
    flip: float = 0.5
    crop_scale: list[float] | None = field(default_factory=lambda: [0.7, 1.0])
    photometric: float = 0.2
    hide: str | None = None
    hide_probability: float = 1.0
    hide_height: list[float] = field(default_factory=lambda: [0.5, 0.83])
    hide_width: list[float] = field(default_factory=lambda: [0.38, 0.69])
    skip_broken: int = 0
    workers: int = 0


@dataclass(frozen=True)
class ModelSection:
    """Section of the model.

    Attributes:
        task: ``segmentation``, ``depth`` or ``bev``.
        config: fields of ``Noise2MapConfig`` (``Noise2MapBevConfig``) that differ from its defaults; ``backbone_config`` is a
            mapping with ``model_type``.
        init_from: a checkpoint to start from (path or hub id); its configuration is the base that ``config`` changes.
        encoder_from: a checkpoint of segmentation or depth (shipped name, path or hub id) whose image encoder (backbone and
            pyramid; for bird's-eye-view maps the backbone) a fresh model starts with; a bird's-eye-view model may begin with the
            whole encoder of another with the same sensors.
        backbone_from: a backbone pretrained on ImageNet (hub id or local folder of transformers) that a fresh model starts with.
        freeze_encoder: train all but the encoder.
        self_aligned: train on the model's own predictions; needs ``init_from``.
    """

    task: str = "segmentation"
    config: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    encoder_from: str | None = None
    backbone_from: str | None = None
    freeze_encoder: bool = False
    self_aligned: bool = False


@dataclass(frozen=True)
class TrainSection(RunSection):
    """The run of a map model.

    Attributes:
        sync_batch_norm: batch statistics over all processes (CUDA, several processes).
        cache_features: folder for the features of a frozen encoder, computed once for ``cache_views`` views of each training image
            (mirrored in turn where ``data.flip`` is not 0, each with its own ``data.hide``; no other augmentation), or of each
            surround sample (each with its own draw of the whole augmentation; layers are kept, too).
        cache_views: views of each sample.
        cache_window: train on windows of this size ``WxH`` of the cached features and their maps, drawn anew in each epoch;
            ``none`` for whole images. The features are those of whole images, so the encoder has seen what lies around.
        eval_steps: numbers of decoder calls to evaluate. The last evaluation takes all images.
    """

    iterations: int = 160_000
    sync_batch_norm: bool = False
    cache_features: str | None = None
    cache_views: int = 2
    cache_window: str | None = None
    eval_steps: list[int] = field(default_factory=lambda: [1, 3, 10])

    def check(self) -> None:
        """Refuses values that cannot work, as :class:`RunSection` does."""
        super().check()
        expect(bool(self.eval_steps), "train.eval_steps", self.eval_steps, "a list of numbers")
        expect(self.cache_views >= 1, "train.cache_views", self.cache_views, "at least 1")
        expect(min(self.eval_steps) >= 1, "train.eval_steps", self.eval_steps, "numbers of at least 1")
        if max(self.eval_steps) > _USUAL_STEPS:
            from noise2map.models.decoding import MAX_STEPS  # imports torch, and most recipes need not wait for it

            expect(max(self.eval_steps) <= MAX_STEPS, "train.eval_steps", self.eval_steps, f"numbers from 1 to {MAX_STEPS}")
        window = self.window_size()
        expect(window is None or self.cache_features is not None, "train.cache_window", self.cache_window, "none without a cache")
        cells = window is None or not any(side % CELL for side in window)
        expect(cells, "train.cache_window", self.cache_window, f"multiples of {CELL} pixels, the cells of the features")

    def window_size(self) -> tuple[int, int] | None:
        """``cache_window`` as ``(width, height)`` in pixels, or ``None``."""
        return parse_pixels("train.cache_window", self.cache_window)


_USUAL_STEPS = 100


@dataclass(frozen=True)
class Recipe:
    """A whole run. Build it with :func:`load_recipe` or in Python; checks run at construction.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    train: TrainSection = field(default_factory=TrainSection)
    bev: BevSection = field(default_factory=BevSection)

    def __post_init__(self) -> None:
        expect(self.model.task in TASKS, "model.task", self.model.task, f"one of {', '.join(TASKS)}")
        expect(self.data.classes in (8, 10), "data.classes", self.data.classes, "10 or 8")
        self.optim.check()
        self.schedule.check()
        self.train.check()
        if self.model.self_aligned and self.model.init_from is None:
            raise ValueError("model.self_aligned fine-tunes a trained model: set model.init_from to its checkpoint")
        if self.model.encoder_from is not None and self.model.init_from is not None:
            kept = f"model.encoder_from is {self.model.encoder_from!r}: expected one of them, e.g. model.encoder_from=none"
            raise ValueError(f"model.init_from already brings an encoder, and {kept}")
        self._check_data()
        self._check_frozen()
        self.bev.check()
        if self.bev.cells != "visible" and self.data.name != "freedoom-surround":
            raise ValueError(
                f"recipe field bev.cells is {self.bev.cells!r}; {self.data.name} labels every cell, expected 'visible'"
            )

    def _check_frozen(self) -> None:
        data, frozen, cache = self.data, self.model.freeze_encoder, self.train.cache_features
        taught = self.model.config.get("depth_loss_weight", 0)
        expected = "0 where the encoder is frozen: it learns no depth"
        expect(not (frozen and taught), "model.config.depth_loss_weight", taught, expected)
        if cache is None:
            return
        expect(frozen, "train.cache_features", cache, "none, or model.freeze_encoder true: features that are trained change")
        if not DATASETS[data.name].images:  # whose views are drawn by the whole augmentation
            expect(self.train.cache_window is None, "train.cache_window", self.train.cache_window, "none for bird's-eye-view maps")
            return
        for name, off in (("crop", None), ("crop_scale", None), ("photometric", 0)):
            value = getattr(data, name)
            expect(value == off, f"data.{name}", value, f"{'none' if off is None else off} where features are cached")

    def _check_data(self) -> None:
        data = self.data
        names = [name for name in dataset_names(self.model.task) if DATASETS[name].takes_root]
        expect(data.name in names, "data.name", data.name, f"one of {', '.join(names)} for task {self.model.task}")
        expect(data.transform in TRANSFORMS, "data.transform", data.transform, f"one of {', '.join(TRANSFORMS)}")
        expect(data.train_limit >= 0, "data.train_limit", data.train_limit, "0 or more")
        scale = data.crop_scale
        fits = scale is None or (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1)
        expect(fits, "data.crop_scale", scale, "[low, high] in (0, 1], or none")
        expect(0 <= data.flip <= 1, "data.flip", data.flip, "a probability")
        expect(0 <= data.photometric < 1, "data.photometric", data.photometric, "a number in [0, 1)")
        expect(data.depth_scale > 0, "data.depth_scale", data.depth_scale, "metres per unit, a positive number")
        for name in ("skip_broken", "workers"):
            expect(getattr(data, name) >= 0, f"data.{name}", getattr(data, name), "0 or more")
        if data.hide is not None:
            expect(DATASETS[data.name].images, "data.hide", data.hide, "none: of bird's-eye-view maps no image is covered")
            self.hiding()
        size, crop = self.image_size(), self.crop_size()
        if data.keep_ratio and size is None:
            raise ValueError("data.keep_ratio fits images into data.size; expected a size, got none")
        if data.transform != "default" and crop is None:
            raise ValueError(f"data.transform {data.transform} cuts windows; expected their size data.crop, e.g. 512x512")
        if data.transform == "default" and crop is not None:
            raise ValueError(f"data.crop is {crop}; the default transform cuts no window of fixed size (see data.crop_scale)")
        if data.transform in ("ade20k", "cityscapes") and size is None:
            raise ValueError(f"data.transform {data.transform} scales images about data.size; expected a size, got none")
        one_folder = data.name == "folder" and data.train == data.val
        good = data.hold_out_every == 0 or (data.hold_out_every >= 2 and one_folder)
        expect(good, "data.hold_out_every", data.hold_out_every, "0, or at least 2 where a folder is both train and val")
        if data.name not in FOLDERS and data.root is None:
            raise ValueError(f"data.root is not set; expected the folder of {data.name}")

    def image_size(self) -> tuple[int, int] | None:
        """``data.size`` as ``(width, height)`` in pixels, or ``None``."""
        return parse_pixels("data.size", self.data.size)

    def crop_size(self) -> tuple[int, int] | None:
        """``data.crop`` as ``(width, height)`` in pixels, or ``None``."""
        return parse_pixels("data.crop", self.data.crop)

    def hiding(self, probability: float | None = None) -> Hide | None:
        """What ``data.hide`` does to a sample, or ``None``.

        Args:
            probability: in place of ``data.hide_probability``.

        Raises:
            ValueError: if a field cannot work.
        """
        data = self.data
        if data.hide is None:
            return None
        for name in ("hide_height", "hide_width"):
            expect(len(getattr(data, name)) == 2, f"data.{name}", getattr(data, name), "[low, high]")
        chance = data.hide_probability if probability is None else probability
        try:
            return Hide(data.hide, chance, (data.hide_height[0], data.hide_height[1]), (data.hide_width[0], data.hide_width[1]))
        except ValueError as error:
            raise ValueError(f"recipe fields data.hide*: {error}") from None

    def check_folders(self) -> None:
        """Find out at once whether the data is there, before anything heavy is imported.

        Raises:
            FileNotFoundError: if a folder of the recipe is missing, saying where it comes from.
        """
        data = self.data
        for name in ("train", "val") if data.name in FOLDERS else ("root",):
            folder = getattr(data, name)
            if Path(folder).is_dir():
                continue
            help_ = f"; render it with 'noise2map data {data.name}'" if data.name.startswith("freedoom") else ""
            raise FileNotFoundError(f"there is no folder {folder}, which the recipe names as data.{name} ({data.name}){help_}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as in the YAML file."""
        tree = dataclasses.asdict(self)
        if DATASETS[self.data.name].images:
            del tree["bev"]
        return tree


def load_recipe(name_or_path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, and apply ``section.field=value`` overrides.

    Args:
        name_or_path: a YAML file, or a name of :func:`recipe_names`.
        overrides: assignments such as ``"optim.lr=1e-4"`` or ``"model.config.map_scale=0.1"``; values are YAML.

    Raises:
        FileNotFoundError: if there is no such file nor shipped recipe.
        ValueError: for broken YAML, an unknown key (with the closest known one) or a value of the wrong type.
    """
    return load_as(Recipe, name_or_path, overrides)


def make_recipe(tree: dict[str, Any], overrides: list[str] | None = None) -> Recipe:
    """A recipe from nested mappings and ``section.field=value`` overrides; errors as in :func:`load_recipe`."""
    return make_as(Recipe, tree, overrides)
