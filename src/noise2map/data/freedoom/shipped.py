"""The frames that ship with the package, so that tests, demo and examples need no renderer."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from noise2map.data.freedoom.catalog import SPLITS, class_names
from noise2map.data.freedoom.dataset import FreedoomDataset
from noise2map.data.freedoom.format import CENTIMETRES
from noise2map.runs.files import write_file, write_text

if TYPE_CHECKING:
    from noise2map.data.freedoom.surround import FreedoomSurroundDataset

SAMPLES_ROOT = Path(__file__).parent / "samples"

SURROUND_SAMPLES_ROOT = SAMPLES_ROOT / "surround"

LICENSE_PATH = SAMPLES_ROOT / "LICENSE.freedoom"

LARGE = "test-320x240"


def load_samples(split: str = "test", task: str = "segmentation", **options: Any) -> FreedoomDataset:
    """Open shipped frames as a dataset.

    Args:
        split: ``train``, ``val`` or ``test`` (160x120), or ``test-320x240`` for a few larger ones of test maps.
        task: ``"segmentation"``, ``"depth"`` or ``"both"``.
        **options: See :class:`FreedoomDataset`.
    """
    known = (*SPLITS, LARGE)
    if split not in known:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(known)}")
    return FreedoomDataset(SAMPLES_ROOT / split, task, **options)


def load_surround_samples(**options: Any) -> "FreedoomSurroundDataset":
    """Open the shipped places seen all around: test samples of a surround set, chosen by eye for varied maps.

    Their vector maps reach 20 m around each place: enough for the default extent, turned by any angle. There are no LiDAR
    readings before the key frames, so that ``sweeps`` is 0 unless asked otherwise (key frames then stand in).

    Args:
        **options: See :class:`noise2map.data.freedoom.surround.FreedoomSurroundDataset`.

    Raises:
        ImportError: If shapely or OpenCV, which draw the map layers, is not installed.
    """
    from noise2map.data.freedoom.surround import FreedoomSurroundDataset  # it imports this package

    return FreedoomSurroundDataset(SURROUND_SAMPLES_ROOT, "test", **{"sweeps": 0, **options})


def export_samples(out: Path, split: str = "test") -> int:
    """Copy shipped frames out for other tools: ``images`` (brightened), ``maps``, ``depth`` (16 bits, centimetres).

    ``out`` can be read by :class:`noise2map.data.FolderDataset` and given to ``noise2map predict``.

    Returns:
        The number of frames.
    """
    frames = load_samples(split, "both")
    for part in ("images", "maps", "depth"):
        (out / part).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(LICENSE_PATH, out / LICENSE_PATH.name)
    write_text(out / "classes.json", json.dumps(class_names(), indent=1) + "\n")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(frames.palette)] = frames.palette
    for index in range(len(frames)):
        sample = frames[index]
        labels = Image.fromarray(sample["labels"])
        labels.putpalette(palette.tobytes())
        depth = Image.fromarray(np.rint(sample["depth_m"] * CENTIMETRES).astype(np.uint16))
        for part, image in (("images", sample["image"]), ("maps", labels), ("depth", depth)):
            write_file(out / part / f"{sample['id']}.png", partial(image.save, format="PNG"))
    return len(frames)
