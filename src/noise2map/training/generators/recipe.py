"""Typed recipes of unconditional diffusion U-Nets: image generators and depth priors. Sections as in map recipes."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.training.recipe_files import load_as, make_as, recipe_names
from noise2map.training.recipe_sections import OptimSection, RunSection, ScheduleSection, expect

FOLDER = "generator"

TARGETS = ("image", "depth")

SOURCES = ("freedoom", "folder", "lsun")


@dataclass(frozen=True)
class ImagesSection:
    """Section of the images.

    Attributes:
        name: ``freedoom`` (rendered frames), ``folder`` (any images; 16-bit depth maps for a prior) or ``lsun`` (its LMDB).
        train: directory of the images; of LSUN the folder that holds ``CATEGORY_train_lmdb``.
        val: directory of held-out images; ``none`` holds out every so many-th of ``train``.
        hold_out_every: which part of ``train`` is held out if ``val`` is ``none``.
        category: of LSUN: ``bedroom``, ``church_outdoor``, ...; may be left out if the folder holds one.
        limit: take this many images only; ``none`` for all.
        size: side of the images in pixels; the center crop is resized to it.
        flip: probability of mirroring.
        depth_scale: metres in a unit of a folder's depth maps (0.001 for millimetres).
        missing: what pixels without depth are: ``far`` (sky), or ``ignore`` (left out of the loss).
        workers: processes that load data; 0 loads in the training process, which keeps small datasets in memory.
    """

    name: str = "freedoom"
    train: str = "data/freedoom/train"
    val: str | None = "data/freedoom/val"
    hold_out_every: int = 50
    category: str | None = None
    limit: int | None = None
    size: int = 64
    flip: float = 0.5
    depth_scale: float = 0.001
    missing: str = "far"
    workers: int = 0


@dataclass(frozen=True)
class UNetSection:
    """The network and its process.

    Attributes:
        target: ``image`` (a generator) or ``depth`` (a prior).
        unet: arguments of diffusers' ``UNet2DModel``; channels and ``sample_size`` follow from ``target`` and ``data.size``.
        scheduler: arguments of diffusers' ``DDPMScheduler``.
        init_from: a trained one of the same kind whose weights and process are the start (path or hub id).
        min_depth: nearest depth in metres, of a prior; the predictor that it judges must have the same range. ``none`` with
            ``max_depth: none`` for relative depth in [0, 1].
        max_depth: farthest depth in metres.
        depth_representation: ``log`` or ``linear``, of metric depth.
    """

    target: str = "image"
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    min_depth: float | None = 0.5
    max_depth: float | None = 40.0
    depth_representation: str = "log"


@dataclass(frozen=True)
class GeneratorRun(RunSection):
    """The run of a generator or a prior.

    Attributes:
        channels_last: channels last in memory: faster convolutions on CPUs and tensor cores.
        sample_steps: steps of the sampler that draws the sample grid.
    """

    batch_size: int = 32
    channels_last: bool = True
    eval_images: int = 256
    sample_images: int = 16
    sample_steps: int = 50
    ema_half_life_images: float = 100_000.0

    def check(self) -> None:
        """Refuses values that cannot work, as :class:`RunSection` does."""
        super().check()
        expect(self.sample_steps >= 1, "train.sample_steps", self.sample_steps, "at least 1")


@dataclass(frozen=True)
class GeneratorRecipe:
    """A whole run. Build it with :func:`load_generator_recipe` or in Python; checks run at construction.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    data: ImagesSection = field(default_factory=ImagesSection)
    model: UNetSection = field(default_factory=UNetSection)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    train: GeneratorRun = field(default_factory=GeneratorRun)

    def __post_init__(self) -> None:
        data, model = self.data, self.model
        expect(model.target in TARGETS, "model.target", model.target, f"one of {', '.join(TARGETS)}")
        expect(data.name in SOURCES, "data.name", data.name, f"one of {', '.join(SOURCES)}")
        expect(not (data.name == "lsun" and model.target == "depth"), "data.name", "lsun", "data with depth: freedoom or folder")
        expect(data.missing in ("far", "ignore"), "data.missing", data.missing, "far or ignore")
        expect(data.size >= 8, "data.size", data.size, "at least 8 pixels")
        expect(0 <= data.flip <= 1, "data.flip", data.flip, "a probability")
        expect(data.depth_scale > 0, "data.depth_scale", data.depth_scale, "metres per unit, a positive number")
        expect(data.limit is None or data.limit >= 2, "data.limit", data.limit, "at least 2, or none")
        expect(data.workers >= 0, "data.workers", data.workers, "0 or more")
        expect(data.hold_out_every >= 2, "data.hold_out_every", data.hold_out_every, "at least 2")
        both = model.min_depth is not None and model.max_depth is not None
        good_range = 0 < model.min_depth < model.max_depth if both else model.min_depth is model.max_depth
        wanted = f"a positive number below max_depth {model.max_depth}, or none for both"
        expect(good_range, "model.min_depth", model.min_depth, wanted)
        kinds = ("log", "linear")
        expect(model.depth_representation in kinds, "model.depth_representation", model.depth_representation, "log or linear")
        widths = model.unet.get("block_out_channels", [])
        expect(isinstance(widths, list | tuple), "model.unet.block_out_channels", widths, "a list of widths")
        steps = model.scheduler.get("num_train_timesteps", 1000)
        fits = not isinstance(steps, int) or self.train.sample_steps <= steps
        expect(fits, "train.sample_steps", self.train.sample_steps, f"at most the {steps} steps of the process")
        halvings = max(len(model.unet.get("block_out_channels", ())) - 1, 0)
        fits = data.size % 2**halvings == 0
        expect(fits, "data.size", data.size, f"a multiple of {2**halvings}: the U-Net halves it {halvings} times")
        self.optim.check()
        self.schedule.check()
        self.train.check()

    def check_folders(self) -> None:
        """Find out at once whether the data is there.

        Raises:
            FileNotFoundError: if a folder of the recipe is missing.
        """
        for name in ("train", "val"):
            folder = getattr(self.data, name)
            if folder is not None and not Path(folder).is_dir():
                raise FileNotFoundError(f"there is no folder {folder}, which the recipe names as data.{name}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as in the YAML file."""
        return dataclasses.asdict(self)


def generator_recipe_names() -> list[str]:
    """Names of the recipes of generators and priors that are shipped with the package."""
    return recipe_names(FOLDER)


def load_generator_recipe(name_or_path: str | Path, overrides: list[str] | None = None) -> GeneratorRecipe:
    """Read a recipe file, or a shipped recipe by name, and apply ``section.field=value`` overrides.

    Raises:
        FileNotFoundError: if there is no such file nor shipped recipe.
        ValueError: for broken YAML, an unknown key (with the closest known one) or a value of the wrong type.
    """
    return load_as(GeneratorRecipe, name_or_path, overrides, FOLDER)


def make_generator_recipe(tree: dict[str, Any], overrides: list[str] | None = None) -> GeneratorRecipe:
    """A recipe from nested mappings and overrides; errors as in :func:`load_generator_recipe`."""
    return make_as(GeneratorRecipe, tree, overrides)
