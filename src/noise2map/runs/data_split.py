"""The split of a folder of images between training and validation, recorded with the model as ``data_split.json``.

Images are known again by the content of their files, so a folder that was moved or renamed is still the folder that was trained on,
and another folder with equal file names is not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from noise2map.runs.files import content_checksum, write_json

SPLIT_FILE = "data_split.json"
_DIGITS = 32
# Weights lie in RUN/final, RUN/checkpoint-N or RUN/checkpoint-N/ema.
_LEVELS = 3


@dataclass(frozen=True)
class DataSplit:
    """Which images a model was trained on and which were held out.

    Attributes:
        train: id of an image to the checksum of its file.
        val: the same of the held-out ones.
    """

    train: Mapping[str, str]
    val: Mapping[str, str]

    @classmethod
    def of(cls, train: Mapping[str, Path], val: Mapping[str, Path]) -> "DataSplit":
        """The split of image files by id."""
        return cls(*({name: file_checksum(path) for name, path in part.items()} for part in (train, val)))

    @classmethod
    def read(cls, folder: str | Path) -> "DataSplit | None":
        """The split recorded in a model's folder or in the run that holds it; ``None`` if there is none.

        Raises:
            ValueError: if the file is not what :meth:`write` writes.
        """
        folder = Path(folder)
        if not folder.is_dir():
            return None
        for place in (folder.resolve(), *folder.resolve().parents)[:_LEVELS]:
            path = place / SPLIT_FILE
            if path.is_file():
                try:
                    tree = json.loads(path.read_text(encoding="utf-8"))
                    return cls(*({str(name): str(checksum) for name, checksum in tree[part].items()} for part in ("train", "val")))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(f"{path} is no record of a split: {error!r}") from error
        return None

    def write(self, folder: str | Path) -> Path:
        """Write ``data_split.json`` into a folder, whole or not at all."""
        path = Path(folder) / SPLIT_FILE
        write_json(path, {"train": dict(self.train), "val": dict(self.val)})
        return path


def file_checksum(path: str | Path) -> str:
    """Hexadecimal checksum of a file's content."""
    return content_checksum([Path(path).read_bytes()], _DIGITS)
