"""Typed recipes: a YAML file into a dataclass, unknown keys refused by name, and a run built from the result.

A recipe has the sections ``data``, ``model``, ``optim``, ``schedule`` and ``train`` and states only what differs from the defaults.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

TASKS = ("segmentation", "depth")
DATA_SETS = ("freedoom", "folder")


@dataclass(frozen=True)
class DataSection:
    """What is trained on.

    Attributes:
        name: kind of data set: ``freedoom`` (rendered frames) or ``folder`` (``images/`` and ``maps/``).
        train: directory of the training samples.
        val: directory of the validation samples.
        classes: number of Freedoom classes, 10 or 8.
        class_names: names of a folder's classes in the order of their ids; by default those of its ``classes.json``.
        depth_scale: metres in a unit of a folder's depth maps (0.001 for millimetres, 0.00390625 for KITTI).
        size: picture size ``WxH`` that the network sees; ``none`` for the pictures' own (all of one size).
        flip: probability of mirroring.
        crop_scale: range of the random window's side (segmentation only); ``none`` for no crops.
        photometric: half-width of the colour factors; 0 for none.
        workers: processes that load data; 0 loads in the training process.
    """

    name: str = "freedoom"
    train: str = "data/freedoom/train"
    val: str = "data/freedoom/val"
    classes: int = 10
    class_names: list[str] | None = None
    depth_scale: float = 0.001
    size: str | None = "160x120"
    flip: float = 0.5
    crop_scale: list[float] | None = field(default_factory=lambda: [0.7, 1.0])
    photometric: float = 0.2
    workers: int = 0


@dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        task: ``segmentation`` or ``depth``.
        config: fields of ``Noise2MapConfig`` that differ from its defaults; ``backbone_config`` is a mapping with ``model_type``.
        init_from: a checkpoint to start from (path or hub id); its configuration is the base that ``config`` changes.
        encoder_from: a checkpoint of any task whose image encoder (backbone and pyramid) a fresh model starts with.
        self_aligned: train on the model's own predictions; needs ``init_from``.
    """

    task: str = "segmentation"
    config: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    encoder_from: str | None = None
    self_aligned: bool = False


@dataclass(frozen=True)
class OptimSection:
    """AdamW.

    Attributes:
        lr: base learning rate; self-aligned fine-tuning usually takes a tenth (6e-6).
        weight_decay: decoupled weight decay.
        no_decay: ``norms``, ``none`` or a list of regular expressions of parameter names without decay.
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

    def __post_init__(self) -> None:
        _expect(self.model.task in TASKS, "model.task", self.model.task, f"one of {', '.join(TASKS)}")
        _expect(self.data.name in DATA_SETS, "data.name", self.data.name, f"one of {', '.join(DATA_SETS)}")
        _expect(self.data.classes in (8, 10), "data.classes", self.data.classes, "10 or 8")
        _expect(self.optim.lr > 0, "optim.lr", self.optim.lr, "a positive number")
        _expect(self.optim.weight_decay >= 0, "optim.weight_decay", self.optim.weight_decay, "0 or more")
        _expect(self.optim.max_grad_norm >= 0, "optim.max_grad_norm", self.optim.max_grad_norm, "0 or more")
        for name in ("iterations", "batch_size", "accumulation", "log_every", "save_every", "keep"):
            value = getattr(self.train, name)
            _expect(value >= 1, f"train.{name}", value, "at least 1")
        for name in ("eval_every", "eval_images", "sample_images", "threads"):
            value = getattr(self.train, name)
            _expect(value >= 0, f"train.{name}", value, "0 or more")
        _expect(bool(self.train.eval_steps), "train.eval_steps", self.train.eval_steps, "a list of numbers")
        _expect(min(self.train.eval_steps) >= 1, "train.eval_steps", self.train.eval_steps, "numbers of at least 1")
        multiple = self.train.save_every % self.train.log_every == 0
        _expect(multiple, "train.save_every", self.train.save_every, f"a multiple of log_every {self.train.log_every}")
        if self.model.self_aligned and self.model.init_from is None:
            raise ValueError("model.self_aligned fine-tunes a trained model: set model.init_from to its checkpoint")
        if self.model.encoder_from is not None and self.model.init_from is not None:
            raise ValueError("model.init_from already brings an encoder; expected it or model.encoder_from, not both")
        crop = self.data.crop_scale
        _expect(crop is None or len(crop) == 2, "data.crop_scale", crop, "[low, high] or none")
        self.picture_size()

    def picture_size(self) -> tuple[int, int] | None:
        """``data.size`` as ``(width, height)`` in pixels, or ``None``."""
        if self.data.size is None:
            return None
        width, _, height = self.data.size.partition("x")
        good = width.isdigit() and height.isdigit() and int(width) > 0 and int(height) > 0
        _expect(good, "data.size", self.data.size, "WIDTHxHEIGHT, e.g. 160x120")
        return int(width), int(height)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as in the YAML file."""
        return dataclasses.asdict(self)


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"recipe field {name} is {value!r}; expected {expected}")


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    files = resources.files("noise2map.training").joinpath("recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, and apply ``section.field=value`` overrides.

    Args:
        name_or_path: a YAML file, or a name of :func:`recipe_names`.
        overrides: assignments such as ``"optim.lr=1e-4"`` or ``"model.config.map_scale=0.1"``; values are YAML.

    Raises:
        FileNotFoundError: if there is no such file nor shipped recipe.
        ValueError: for broken YAML, an unknown key (with the closest known one) or a value of the wrong type.
    """
    text, source = _read(name_or_path)
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: expected a mapping with the sections {', '.join(_section_names())}")
    for assignment in overrides or []:
        _assign(tree, assignment)
    return _build(Recipe, tree, "")


def _read(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    names = recipe_names()
    if str(name_or_path) in names:
        file = resources.files("noise2map.training").joinpath("recipes", f"{name_or_path}.yaml")
        return file.read_text(encoding="utf-8"), f"recipe {name_or_path}"
    raise FileNotFoundError(f"no recipe file {path}; shipped recipes: {', '.join(names)}")


def _section_names() -> list[str]:
    return [section.name for section in dataclasses.fields(Recipe)]


def _assign(tree: dict[str, Any], assignment: str) -> None:
    """Apply one ``a.b.c=value`` to the nested mapping."""
    key, separator, value = assignment.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2 or not all(parts):
        raise ValueError(f"override {assignment!r}: expected section.field=value, e.g. optim.lr=1e-4")
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {assignment!r}: {part!r} is not a mapping")
    node[parts[-1]] = yaml.safe_load(value)


def _build(kind: type, tree: Any, prefix: str) -> Any:
    """A (nested) dataclass from a mapping, every key and type checked."""
    if not isinstance(tree, dict):
        raise ValueError(f"recipe section {prefix.rstrip('.') or 'recipe'} is {tree!r}; expected a mapping")
    hints = get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown recipe key {prefix}{key}{hint}")
        hint_type = hints[key]
        if dataclasses.is_dataclass(hint_type):
            values[key] = _build(hint_type, value, f"{prefix}{key}.")
        else:
            values[key] = _convert(value, hint_type, f"{prefix}{key}")
    return kind(**values)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """``value`` as the annotated type. YAML 1.1 reads ``1e-4`` as a string and ``none`` as one: both are meant as written."""
    options = get_args(hint) if get_origin(hint) not in (list, dict) else (hint,)
    options = options or (hint,)
    if type(None) in options and (value is None or value == "none"):
        return None
    for option in options:
        if option is Any:
            return value
        origin = get_origin(option) or option
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if origin is float and not isinstance(value, bool):
            number = _as_number(value)
            if number is not None:
                return number
        if origin is str and isinstance(value, str):
            return value
        if origin is dict and isinstance(value, dict):
            return _numbers(value)
        if origin is list and isinstance(value, list):
            return [_convert(item, get_args(option)[0], f"{name}[{i}]") for i, item in enumerate(value)]
    wanted = " or ".join("none" if option is type(None) else getattr(option, "__name__", str(option)) for option in options)
    raise ValueError(f"recipe field {name} is {value!r}; expected {wanted}")


def _as_number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _numbers(value: Any) -> Any:
    """In free mappings, strings such as ``1e-4`` become numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1].isdigit() and _as_number(value) is not None:
        return _as_number(value)
    return value
