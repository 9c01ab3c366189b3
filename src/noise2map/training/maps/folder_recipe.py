"""A recipe for the user's own folder: looked through first, then sane defaults for what is in it."""

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.folder import CLASSES_FILE, HOLD_OUT_EVERY, FolderDataset, read_classes, read_whole
from noise2map.data.images import image_size, list_images
from noise2map.data.paired import count_classes
from noise2map.tasks import get_task
from noise2map.training.maps.recipe import Recipe, make_recipe
from noise2map.training.recipe_files import recipe_tree

logger = logging.getLogger(__name__)

_LONG_SIDE = 320

_PASSES = 60

_ITERATIONS = (300, 20_000)

_BATCH = 8

_PLAUSIBLE_MEDIAN_M = (0.1, 150.0)


def folder_recipe(
    root: str | Path,
    task: str,
    depth_scale: float = 0.001,
    overrides: list[str] | None = None,
) -> Recipe:
    """A recipe with defaults that follow from what a folder holds; every pair is read once.

    ``ROOT/train`` and ``ROOT/val`` are taken where both are there; else every eighth pair of ``ROOT`` is held out. The classes
    are those of ``classes.json``, or as many as the ids in the maps need.

    Args:
        root: folder with ``images/`` and ``maps/``, or with ``train/`` and ``val/`` that hold them.
        task: ``"segmentation"``, ``"depth"`` or ``"normals"``.
        depth_scale: metres per unit of the depth maps.
        overrides: changes, as in ``load_recipe``.

    Raises:
        OSError: if a folder or file is missing or broken.
        ValueError: if pairs, ids or depths make no sense, or there are too few images.
    """
    root = Path(root)
    kind = get_task(task)
    split = (root / "train").is_dir() and (root / "val").is_dir()
    parts = [root / "train", root / "val"] if split else [root]
    names = _class_names(root, parts) if kind.has_classes else None
    labelled = None if names is None else dict(enumerate(names))
    sets = [FolderDataset(part, task, labelled, depth_scale, missing="drop") for part in parts]
    fields = _read_all(sets, kind.in_metres)
    count = len(sets[0]) if split else len(sets[0]) - len(range(0, len(sets[0]), HOLD_OUT_EVERY))
    if count < 2:
        raise ValueError(f"{root} holds {len(sets[0])} images; expected at least 4 to train on some and to validate on others")
    tree = recipe_tree(f"freedoom-{task}-tiny")
    tree["model"].pop("encoder_from", None)
    batch = min(_BATCH, count)
    iterations = int(np.clip(_PASSES * count / batch, *_ITERATIONS))
    iterations = round(iterations / 100) * 100
    width, height = training_size(parts)
    tree["data"] = {
        "name": "folder",
        "train": str(parts[0]),
        "val": str(parts[-1]),
        "hold_out_every": 0 if split else HOLD_OUT_EVERY,
        "class_names": names,
        "depth_scale": depth_scale,
        "size": f"{width}x{height}",
    }
    tree["model"]["config"] |= fields
    tree["schedule"]["warmup_iterations"] = min(200, iterations // 10)
    tree["train"] |= {"iterations": iterations, "batch_size": batch, "threads": 0, "bf16": False, "log_every": 20}
    tree["train"] |= {"save_every": 100, "eval_every": max(100, iterations // 500 * 100), "eval_images": 96}
    pairs = sum(map(len, sets))
    classes = "" if names is None else f", {len(names)} classes"
    whole = f"{root}: {pairs} pairs are whole{classes}"
    logger.info("%s; %d to train on, %d to validate on, at %dx%d", whole, count, pairs - count, width, height)
    return make_recipe(tree, overrides)


def _class_names(root: Path, parts: list[Path]) -> list[str]:
    """Names of the classes in the order of their ids."""
    for folder in (root, *parts):
        if (folder / CLASSES_FILE).is_file():
            return list(read_classes(folder / CLASSES_FILE).values())
    names, warnings = count_classes([part / "maps" for part in parts])
    for text in warnings:
        logger.warning("warning: %s", text)
    return names


def training_size(parts: list[Path]) -> tuple[int, int]:
    """Width and height to train at: the most frequent image size, at most 320 pixels long, in multiples of 32."""
    sizes = Counter(image_size(path) for part in parts for path in list_images(part / "images"))
    width, height = sizes.most_common(1)[0][0]
    scale = min(1.0, _LONG_SIDE / max(width, height))
    return max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)


def _read_all(sets: list[FolderDataset], in_metres: bool) -> dict[str, Any]:
    """Reads every pair; for depth, the range of the model's from that of the data, and a remark where its scale is unlikely."""
    low, high, medians = math.inf, 0.0, []
    for sample in read_whole(sets):
        known = sample["depth_m"][sample["valid"]] if in_metres else ()
        if len(known):
            low, high = min(low, float(np.quantile(known, 0.001))), max(high, float(known.max()))
            medians.append(float(np.median(known)))
    if not in_metres:
        return {}
    if not medians:
        raise ValueError(f"the depth maps of {sets[0].root} hold no depth: all values are 0")
    median = float(np.median(medians))
    if not _PLAUSIBLE_MEDIAN_M[0] <= median <= _PLAUSIBLE_MEDIAN_M[1]:
        scale = f"--depth-scale {sets[0].depth_scale:g} (metres per unit)"
        logger.warning("warning: the middle depth is %.3g m; is %s right?", median, scale)
    return {"min_depth": round(max(low * 0.9, 1e-3), 4), "max_depth": round(high * 1.1, 3)}
