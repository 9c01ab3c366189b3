"""Typed recipe of an image encoder that is trained on several kinds of maps at once. Sections as in map recipes."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.transforms import Hide
from noise2map.training.recipe_files import load_as, make_as, recipe_names
from noise2map.training.recipe_sections import OptimSection, RunSection, ScheduleSection, expect, parse_pixels

FOLDER = "encoder"


@dataclass(frozen=True)
class EncoderDataSection:
    """Section of the rendered frames, which have all kinds of maps.

    Attributes:
        train: directory of the training frames of ``noise2map data freedoom``.
        val: directory of the validation frames.
        train_limit: train on the first so many frames alone; 0 for all.
        classes: number of Freedoom classes, 10 or 8.
        size: image size ``WxH`` that the network sees; ``none`` for the images' own.
        flip: probability of mirroring.
        photometric: half-width of the color factors; 0 for none.
        hide: what of each image is covered with grey, truth kept: ``none``, or a kind of `noise2map.data.transforms.Hide`.
        hide_probability: share of the training images that are covered; validation images are whole.
        workers: processes that load data; 0 loads in the training process.
    """

    train: str = "data/freedoom/train"
    val: str = "data/freedoom/val"
    train_limit: int = 0
    classes: int = 10
    size: str | None = "160x120"
    flip: float = 0.5
    photometric: float = 0.2
    hide: str | None = None
    hide_probability: float = 0.5
    workers: int = 0


@dataclass(frozen=True)
class EncoderModelSection:
    """Section of the network.

    Attributes:
        config: fields of ``Noise2MapConfig`` that differ from its defaults; those of the decoder do not matter here.
        encoder_from: an encoder to start from (shipped name, path or hub id).
    """

    config: dict[str, Any] = field(default_factory=dict)
    encoder_from: str | None = None


@dataclass(frozen=True)
class EncoderRecipe:
    """A whole run. Build it with :func:`load_encoder_recipe` or in Python; checks run at construction.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    data: EncoderDataSection = field(default_factory=EncoderDataSection)
    model: EncoderModelSection = field(default_factory=EncoderModelSection)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    train: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        data = self.data
        expect(data.classes in (8, 10), "data.classes", data.classes, "10 or 8")
        expect(data.train_limit >= 0, "data.train_limit", data.train_limit, "0 or more")
        expect(0 <= data.flip <= 1, "data.flip", data.flip, "a probability")
        expect(0 <= data.photometric < 1, "data.photometric", data.photometric, "a number in [0, 1)")
        expect(data.workers >= 0, "data.workers", data.workers, "0 or more")
        self.image_size()
        self.hiding()
        self.optim.check()
        self.schedule.check()
        self.train.check()

    def image_size(self) -> tuple[int, int] | None:
        """``data.size`` as ``(width, height)`` in pixels, or ``None``."""
        return parse_pixels("data.size", self.data.size)

    def hiding(self) -> Hide | None:
        """What ``data.hide`` does to a sample, or ``None``.

        Raises:
            ValueError: if the kind or the probability cannot be.
        """
        try:
            return None if self.data.hide is None else Hide(self.data.hide, self.data.hide_probability)
        except ValueError as error:
            raise ValueError(f"recipe fields data.hide*: {error}") from None

    def check_folders(self) -> None:
        """Find out at once whether the data is there.

        Raises:
            FileNotFoundError: if a folder of the recipe is missing, saying where it comes from.
        """
        for name in ("train", "val"):
            folder = getattr(self.data, name)
            if not Path(folder).is_dir():
                raise FileNotFoundError(
                    f"there is no folder {folder}, which the recipe names as data.{name}; render it with 'noise2map data freedoom'"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as in the YAML file."""
        return dataclasses.asdict(self)


def encoder_recipe_names() -> list[str]:
    """Names of the recipes of encoders that are shipped with the package."""
    return recipe_names(FOLDER)


def load_encoder_recipe(name_or_path: str | Path, overrides: list[str] | None = None) -> EncoderRecipe:
    """Read a recipe file, or a shipped recipe by name, and apply ``section.field=value`` overrides.

    Raises:
        FileNotFoundError: if there is no such file nor shipped recipe.
        ValueError: for broken YAML, an unknown key (with the closest known one) or a value of the wrong type.
    """
    return load_as(EncoderRecipe, name_or_path, overrides, FOLDER)


def make_encoder_recipe(tree: dict[str, Any], overrides: list[str] | None = None) -> EncoderRecipe:
    """A recipe from nested mappings and overrides; errors as in :func:`load_encoder_recipe`."""
    return make_as(EncoderRecipe, tree, overrides)
