"""Writes a calibrated checkpoint: the source with a field more in its configuration or processor, in a folder of its own."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from noise2map.models.distributions.calibration import Calibration
from noise2map.runs.data_split import DataSplit
from noise2map.runs.files import write_json, write_text, writing_directory
from noise2map.zoo import named_files, resolve_model

CARD = "README.md"
MARK = "calibration.json"
_HEADING = "## Calibration"
_COPIED = (".json", ".safetensors", ".md", ".png")
_INDEX = "model.safetensors.index.json"


class CalibratedCheckpoint:
    """The folder of a calibrated checkpoint.

    Args:
        source: The model, as the user calls it; never changed.
        out: Where the calibrated one goes.
        overwrite: Replace an earlier calibrated checkpoint.

    Raises:
        OSError: If the model is not there, or ``out`` is a file or a folder that holds something.
        ValueError: If ``out`` is the model's own folder, or one around it.
    """

    def __init__(self, source: str, out: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.source, self.out = resolve_model(source), Path(os.path.abspath(out))
        if self.local and os.path.realpath(self.source) == os.path.realpath(self.out):
            raise ValueError(f"out is the folder of the model itself, {str(out)!r}; expected another: the source is left as it is")
        if self.local and Path(os.path.realpath(self.source)).is_relative_to(os.path.realpath(self.out)):
            raise ValueError(
                f"out is {str(out)!r}, a folder around the model {source!r}; expected another: it would be replaced whole"
            )
        if self.out.exists() and not self.out.is_dir():
            raise FileExistsError(f"{out} is a file; expected a new folder for the calibrated checkpoint")
        held = self.out.is_dir() and any(self.out.iterdir())
        if held and not overwrite:
            raise FileExistsError(f"{out} is not empty; use --overwrite or another --out")
        if held and not (self.out / MARK).is_file():
            raise FileExistsError(f"{out} holds no {MARK}, so it is no calibrated checkpoint to overwrite; expected another --out")

    @property
    def local(self) -> bool:
        """Whether the source is a folder here."""
        return Path(self.source).is_dir()

    @contextlib.contextmanager
    def writing(
        self, model: Any, processor: Any, calibration: Calibration | None, thresholds: Sequence[float] | None = None
    ) -> Iterator[Path]:
        """A folder that holds the calibrated checkpoint and takes its place when the block ends well.

        Args:
            model: The loaded source.
            processor: Its processor.
            calibration: Goes into the configuration; None leaves what is there.
            thresholds: Go into the processor as its `layer_thresholds`; None leaves what is there.

        Yields:
            The folder, to add to.

        Raises:
            OSError: If it cannot be written; nothing is left behind.
        """
        with writing_directory(self.out) as folder:
            source = Path(self.source)
            if self.local:
                files = [path for path in source.iterdir() if path.is_file() and path.suffix in _COPIED]
                for path in files:
                    shutil.copyfile(path, folder / path.name)
                split = DataSplit.read(source)
                if split is not None:
                    split.write(folder)
            if not self.local or any(file.parent != source.resolve() for file in named_files(source)):
                (folder / _INDEX).unlink(missing_ok=True)
                for path in folder.glob("*.safetensors"):
                    path.unlink()
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
            if calibration is not None:
                _set_field(folder / "config.json", "calibration", calibration.as_field())
            if thresholds is not None:
                _set_field(folder / "preprocessor_config.json", "layer_thresholds", list(thresholds))
            yield folder

    @staticmethod
    def add_to_card(folder: Path, section: str) -> None:
        """Adds a section on the calibration to the card, in place of an earlier one."""
        card = folder / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else "# A calibrated noise2map model\n"
        before, heading, rest = text.partition(f"\n{_HEADING}\n")
        following = re.search(r"^## ", rest, re.M) if heading else None
        tail = rest[following.start() :] if following else ""
        write_text(card, f"{before.rstrip()}\n\n{_HEADING}\n\n{section.strip()}\n" + (f"\n{tail}" if tail else ""))


def _set_field(path: Path, name: str, value: Any) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, dict(sorted({**fields, name: value}.items())))
