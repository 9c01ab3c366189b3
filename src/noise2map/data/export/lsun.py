"""The layout of LSUN: an LMDB per split, WebP pictures under keys that look random."""

import hashlib
import io
from pathlib import Path
from typing import Any

from noise2map.data.export.files import FrameWriter
from noise2map.data.lsun import import_lmdb

CATEGORY = "freedoom"
_SPARE_BYTES = 2**26
_QUALITY = 95


class LsunLayout(FrameWriter):
    """``freedoom_train_lmdb`` and ``freedoom_val_lmdb``: images only."""

    splits = ("train", "val")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lmdb = import_lmdb()
        self._open: dict[str, Any] = {}

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        buffer = io.BytesIO()
        frame["image"].save(buffer, "WEBP", quality=_QUALITY)
        key = hashlib.sha1(frame["id"].encode()).hexdigest()
        self._put(split, key.encode(), buffer.getvalue())
        return key

    def _put(self, split: str, key: bytes, value: bytes) -> None:
        """Store a picture; LMDB must be told its size beforehand, so a full database is enlarged."""
        if split not in self._open:
            path = self.root / f"{CATEGORY}_{split}_lmdb"
            # Without a flush for every picture: the whole folder is thrown away if the export does not finish.
            self._open[split] = self._lmdb.open(str(path), map_size=_SPARE_BYTES, sync=False, metasync=False)
        environment = self._open[split]
        while True:
            try:
                with environment.begin(write=True) as transaction:
                    transaction.put(key, value)
                return
            except self._lmdb.MapFullError:
                environment.set_mapsize(environment.info()["map_size"] * 2)

    def finish(self) -> None:
        """Flush the databases."""
        for environment in self._open.values():
            environment.sync(True)

    def close(self) -> None:
        """Close the databases."""
        for environment in self._open.values():
            environment.close()
        self._open = {}
