"""Options of the ablations, and the recipe of every run that follows from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import abspath
from pathlib import Path
from typing import Any

from noise2map.ablation.arms import ABLATIONS, Ablation, Arm, Decoding, make_ablations
from noise2map.data.opening import DATASETS, dataset_names
from noise2map.models import Noise2MapConfig, Noise2MapImageProcessor
from noise2map.training.maps.recipe import FOLDERS, Recipe, load_recipe, make_recipe
from noise2map.zoo import resolve_model

TASK = "segmentation"
_WARMUP = 100


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Options.

    Attributes:
        names: which ablations.
        out: folder of runs and results.
        encoder: shipped name, folder or hub id of a model whose image encoder is kept and frozen.
        dataset: kind of the data, of class maps.
        root: its folder.
        train: folder in it, or split, that is trained on.
        val: folder in it, or split, that is scored on.
        iterations: optimizer steps of each training.
        seeds: trainings of each arm, seeds 0, 1, ...
        batch_size: windows of a step.
        window: their size ``WxH`` in pixels, cut from the features of whole images; `None` for whole images.
        train_limit: train on the first so many images; 0 for all.
        limit: score so many images, evenly spaced; 0 for all.
        features: folder of the features of the training images; by default ``features`` in ``out``.
        changes: further ``section.field=value`` of every recipe.
        resamples: bootstrap resamples of an interval.

    Raises:
        ValueError: If a value cannot work.
    """

    names: Sequence[str]
    out: Path
    encoder: str = "freedoom-segmentation-tiny"
    dataset: str = "freedoom"
    root: Path = Path("data/freedoom")
    train: str = "train"
    val: str = "val"
    iterations: int = 600
    seeds: int = 3
    batch_size: int = 8
    window: str | None = None
    train_limit: int = 0
    limit: int = 0
    features: Path | None = None
    changes: Sequence[str] = field(default_factory=tuple)
    resamples: int = 1000

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in ABLATIONS]
        if unknown or not self.names:
            raise ValueError(f"ablations are {', '.join(unknown) or 'none'}; expected of {', '.join(ABLATIONS)}")
        for name, least in (
            ("iterations", 1),
            ("seeds", 1),
            ("batch_size", 1),
            ("resamples", 1),
            ("limit", 0),
            ("train_limit", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        known = [name for name in dataset_names(TASK) if DATASETS[name].takes_root]
        if self.dataset not in known:
            raise ValueError(f"dataset is {self.dataset!r}; expected one with class maps: {', '.join(known)}")

    @property
    def runs(self) -> Path:
        """Folder of the trainings."""
        return self.out / "runs"

    def settings(self) -> dict[str, Any]:
        """What all runs in the output folder have in common; names and the number of seeds may grow from call to call."""
        names = ("encoder", "dataset", "train", "val", "iterations", "batch_size", "window", "train_limit", "limit")
        chosen = {name: getattr(self, name) for name in names}
        encoder = os.path.abspath(self.encoder) if Path(self.encoder).is_dir() else self.encoder
        chosen |= {"root": os.path.abspath(self.root), "encoder": encoder, "changes": list(self.changes)}
        return {"command": "experiment ablation", **chosen}


@dataclass(frozen=True)
class Run:
    """A training of an arm.

    Attributes:
        arm: what is trained.
        seed: of weights, order, windows and noise.
        recipe: all of it.
        folder: its run directory.
        decodings: how its maps are scored.
    """

    arm: Arm
    seed: int
    recipe: Recipe
    folder: Path
    decodings: tuple[Decoding, ...]


def make_recipe_of(arm: Arm, seed: int, options: AblationOptions) -> Recipe:
    """The recipe of a run: the shipped one, on the features of the encoder and the user's data.

    Raises:
        OSError: If the encoder is not there.
        ValueError: For an impossible value.
    """
    tree = load_recipe(f"decoders/{arm.recipe}").to_dict()
    folder, paths = options.dataset in FOLDERS, (options.train, options.val)
    tree["data"] |= {"name": options.dataset, "root": None if folder else abspath(options.root), "train_limit": options.train_limit}
    tree["data"] |= dict(zip(("train", "val"), (abspath(options.root / path) if folder else path for path in paths)))
    tree["data"] |= _size_of(options.encoder)
    encoder = Noise2MapConfig.from_pretrained(resolve_model(options.encoder))
    backbone = {name: value for name, value in encoder.backbone_config.to_diff_dict().items() if name != "transformers_version"}
    shared = {name: getattr(encoder, name) for name in ("hidden_size", "group_norm_groups")}
    tree["model"] |= {"encoder_from": options.encoder, "freeze_encoder": True}
    tree["model"]["config"] |= {"backbone_config": backbone, **shared, **arm.changes}
    tree["schedule"]["warmup_iterations"] = min(_WARMUP, options.iterations // 10)
    features = options.out / "features" if options.features is None else options.features
    tree["train"] |= {
        "iterations": options.iterations,
        "batch_size": options.batch_size,
        "seed": seed,
        "cache_features": abspath(features),
        "cache_window": options.window,
        "save_every": max(50, options.iterations // 150 * 50),
        "keep": 1,
        "eval_every": 0,
        "eval_steps": [1],
        "eval_images": 8,  # a look at the end of the training; scores are taken apart, at several steps
        "sample_images": 0,
    }
    # An arm's own field stays what it is about, whatever is changed for all.
    fixed = {f"model.config.{name}" for name in arm.changes}
    return make_recipe(tree, [change for change in options.changes if change.partition("=")[0] not in fixed])


def _size_of(encoder: str) -> dict[str, Any]:
    """Fields of the data for images as large as the encoder's checkpoint takes them."""
    processor = Noise2MapImageProcessor.from_pretrained(resolve_model(encoder))
    if not processor.do_resize:
        return {"size": None}
    size = processor.size
    if size.get("height"):
        return {"size": f"{size['width']}x{size['height']}"}
    return {"size": f"{size.get('longest_edge') or size['shortest_edge']}x{size['shortest_edge']}", "keep_ratio": True}


def make_runs(options: AblationOptions) -> tuple[list[Ablation], list[Run]]:
    """The chosen ablations and their trainings, all arms of the first seed first: a table of one seed is whole early.

    Raises:
        OSError: If the encoder or data is missing.
        ValueError: For an impossible value.
    """
    base = make_recipe_of(Arm("published", ""), 0, options)
    base.check_folders()
    defaults = Noise2MapConfig.__dataclass_fields__
    fields = ("map_encoding", "map_scale", "noise_schedule", "decoder_layers", "time_difference")
    known = make_ablations({name: base.model.config.get(name, defaults[name].default) for name in fields})
    chosen = [known[name] for name in dict.fromkeys(options.names)]
    asked: dict[str, tuple[Arm, set[Decoding]]] = {}
    for ablation in chosen:
        for arm in ablation.arms:
            asked.setdefault(arm.name, (arm, set()))[1].update(ablation.decodings)
    runs = []
    for seed in range(options.seeds):
        for arm, decodings in asked.values():
            recipe = make_recipe_of(arm, seed, options)
            ways = _ordered(decodings) if arm.has_steps else (Decoding(1),)
            runs.append(Run(arm, seed, recipe, options.runs / f"{arm.name}-seed{seed}", ways))
    return chosen, runs


def _ordered(decodings: set[Decoding]) -> tuple[Decoding, ...]:
    return tuple(sorted(decodings, key=lambda one: (one.time_difference is not None, one.time_difference or 0, one.steps)))
