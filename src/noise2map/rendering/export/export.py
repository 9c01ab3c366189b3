"""One export: from rendered or shipped frames to a folder that appears whole or not at all."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.freedoom import FreedoomDataset
from noise2map.data.freedoom.catalog import DEFAULT_GAIN
from noise2map.data.freedoom.dataset import is_rendered
from noise2map.data.freedoom.shipped import SAMPLES_ROOT
from noise2map.data.opening import open_dataset
from noise2map.rendering.export.layouts import LAYOUTS
from noise2map.rendering.export.writer import FrameWriter
from noise2map.runs.files import write_text, writing_directory
from noise2map.runs.progress import progress_bar

SAMPLES = "samples"

_LICENCE = "LICENSE.freedoom"


@dataclass
class ExportReport:
    """Report of an export; also in ``export.json`` of the folder.

    Attributes:
        layout: Name of the layout.
        frames: Frames by split, as the layout calls it.
        lost_pixels: Pixels with depth that the format cannot hold, stored as "not known".
        classes: Freedoom class to class of the dataset.
        ids: Id in the dataset to Freedoom id.
    """

    layout: str
    frames: dict[str, int] = field(default_factory=dict)
    lost_pixels: int = 0
    classes: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)


def open_source(source: str | Path, evaluation: str = "test", gain: float = DEFAULT_GAIN) -> list[FreedoomDataset | None]:
    """The training and the evaluation frames to export.

    Args:
        source: ``"samples"`` (shipped), a folder of rendered splits (``train``, ``val``, ``test``), or one rendered split.
        evaluation: Which Freedoom split the evaluation split is made of, ``"test"`` or ``"val"``.
        gain: How much images are brightened, see :func:`noise2map.data.freedoom.brighten`.

    Returns:
        Training and evaluation frames, None for what there is not.

    Raises:
        FileNotFoundError: If the source holds no rendered split.
        ValueError: If the evaluation split is unknown.
    """
    if evaluation not in ("test", "val"):
        raise ValueError(f"the evaluation split is made of 'test' or 'val', got {evaluation!r}")
    if str(source) == SAMPLES:
        return [open_dataset(SAMPLES, split=name, task="both", gain=gain) for name in ("train", evaluation)]
    root = Path(source)
    if is_rendered(root):
        only = open_dataset("freedoom", root, task="both", gain=gain)
        return [only, None] if only.split == "train" else [None, only]
    if not any(is_rendered(root / name) for name in ("train", evaluation)):
        raise FileNotFoundError(
            f"{root} holds no rendered split (train or {evaluation}); make one with: noise2map data freedoom --out {root / 'train'}"
        )
    found = [name if is_rendered(root / name) else None for name in ("train", evaluation)]
    return [None if name is None else open_dataset("freedoom", root, name, "both", gain=gain) for name in found]


def export_frames(
    layout: str,
    source: str | Path,
    out: str | Path,
    evaluation: str = "test",
    gain: float = DEFAULT_GAIN,
    limit: int | None = None,
    progress: bool = False,
) -> ExportReport:
    """Write Freedoom frames in the layout of a public dataset.

    The folder is put together beside ``out`` and renamed at the end: an export that is killed, or runs out of disk,
    leaves no ``out``.

    Args:
        layout: A key of ``LAYOUTS``.
        source: See :func:`open_source`.
        out: The folder to make; it must not be there, or be empty.
        evaluation: See :func:`open_source`.
        gain: See :func:`open_source`.
        limit: At most this many frames of each split.
        progress: Show a bar on a terminal.

    Raises:
        FileExistsError: If ``out`` holds anything.
        ImportError: If the layout needs a package that is not installed.
        OSError: If the source is missing or a file cannot be written.
        ValueError: If an argument is unknown or out of range.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1, or None for all frames")
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; an export makes a folder of its own")
    frames = open_source(source, evaluation, gain)
    with writing_directory(out, replace=False) as temporary:
        writer = LAYOUTS[layout](temporary)
        try:
            report = _write_all(writer, layout, frames, limit, progress)
        finally:
            writer.close()
        shutil.copyfile(SAMPLES_ROOT / _LICENCE, temporary / _LICENCE)
        description: dict[str, Any] = {**report.__dict__, "source": str(source), "gain": gain}
        write_text(temporary / "export.json", json.dumps(description, indent=1) + "\n")
    return report


def _write_all(
    writer: FrameWriter,
    layout: str,
    frames: list[FreedoomDataset | None],
    limit: int | None,
    progress: bool,
) -> ExportReport:
    report = ExportReport(layout, classes=dict(writer.classes))
    counts = [0 if data is None else min(len(data), limit or len(data)) for data in frames]
    with progress_bar(total=sum(counts), unit="frame", shown=progress) as bar:
        for split, data, count in zip(writer.splits, frames, counts):
            for number in range(count):
                assert data is not None
                sample = data[number]
                report.ids[writer.write(split, number, sample, data.records[number])] = sample["id"]
                report.frames[split] = number + 1
                bar.update()
    writer.finish()
    report.lost_pixels = writer.lost_pixels
    return report
