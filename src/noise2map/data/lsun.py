"""LSUN as distributed: one LMDB folder per category and split, WebP or JPEG images under random keys."""

import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from noise2map.runs.files import user_cache, write_file

_ENDING = "_lmdb"

_DATABASE_NAME = re.compile(rf"(.+)_(train|val|test){_ENDING}")

_EXPECTED = "CATEGORY_SPLIT_lmdb/data.mdb, such as bedroom_train_lmdb, unpacked from the zip of the category"

_INSTALL = 'pip install "noise2map[lsun]"'


class LsunDataset:
    """Images of one category without maps, for unconditional image models.

    LMDB has no access by index, so the keys are listed once: 3 million keys of 40 bytes take 120 MB and some minutes. The list is
    kept in the user's cache directory and made again when the database has changed.

    Args:
        root: Folder that holds ``CATEGORY_SPLIT_lmdb`` folders, or one of them.
        category: ``bedroom``, ``church_outdoor``, ...; may be left out if the root holds one category of the split.
        split: ``train``, ``val`` or ``test``; by default that of ``root`` if it is a database, else ``train``.
        limit: Take the first so many images only, and list no more keys without a ``key_file``.
        key_file: ``.npy`` file to read the keys from, whatever the database holds, or to write all to if it is not there.

    Attributes:
        path: The LMDB folder.
        keys: ``(N,)`` bytes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If lmdb is not installed.
        ValueError: If several categories could be meant, the root is a database of another category or split, or is none, or it
            is empty.
    """

    id2label: dict[int, str] = {}
    palette = np.zeros((0, 3), np.uint8)

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        key_file: str | Path | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; expected at least 1, or None for all images")
        self.path = find_database(Path(root), category, split)
        self.keys = self._read_keys(None if key_file is None else Path(key_file), limit)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image`` (RGB) and ``id`` (the key).

        Raises:
            OSError: Naming key and database, if the image cannot be decoded.
        """
        key = bytes(self.keys[index])
        with self._open().begin(buffers=False) as transaction:
            stored = transaction.get(key)
        name = key.decode("ascii", "backslashreplace")
        if stored is None:
            raise OSError(f"{self.path} has no image {name}")
        try:
            with Image.open(io.BytesIO(stored)) as image:
                return {"image": image.convert("RGB"), "id": name}
        except (OSError, SyntaxError, ValueError) as error:
            raise OSError(f"cannot read image {name} of {self.path}: {error}") from error

    def _open(self) -> Any:
        return open_database(self.path.resolve())

    def _read_keys(self, key_file: Path | None, limit: int | None) -> np.ndarray:
        if key_file is not None and key_file.is_file():
            keys = np.load(key_file, allow_pickle=False)
            if keys.dtype.kind != "S" or keys.ndim != 1:
                raise ValueError(f"{key_file} holds {keys.dtype} of shape {keys.shape}; expected a list of keys")
            return keys[:limit]
        keys = list_keys(self.path, self._open(), limit if key_file is None else None)  # a file of a part would be read as all
        if not len(keys):
            raise ValueError(f"{self.path} holds no image")
        if key_file is not None:
            write_file(key_file, lambda file: np.save(file, keys))
        return keys[:limit]


def import_lmdb() -> Any:
    """The ``lmdb`` module.

    Raises:
        ImportError: Saying how to install it.
    """
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(f"LSUN needs lmdb: {_INSTALL}") from error
    return lmdb


_OPEN: dict[Path, tuple[int, Any]] = {}


def open_database(path: Path) -> Any:
    """The open database, once for each process: LMDB refuses a second one, and a forked worker must not use its parent's.

    Raises:
        ImportError: If lmdb is not installed.
        ValueError: If the folder is no database.
    """
    lmdb = import_lmdb()
    owner, environment = _OPEN.get(path, (os.getpid(), None))
    if owner != os.getpid():
        environment.close()  # the copy that came with the fork; without a lock file this does not touch the parent's
        environment = None
    if environment is None:
        try:
            environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            raise ValueError(f"{path} cannot be opened as an LMDB database: {error}") from error
        _OPEN[path] = (os.getpid(), environment)
    return environment


def find_database(root: Path, category: str | None, split: str | None = None) -> Path:
    """The LMDB folder of a category and split under ``root``; ``root`` itself if it is one.

    Raises:
        FileNotFoundError: Saying what was expected, if there is none.
        ValueError: If no category is given and there are several, or if ``root`` is a database whose name tells of others.
    """
    if (root / "data.mdb").is_file():
        own = _DATABASE_NAME.fullmatch(root.resolve().name)
        for what, wanted, found in zip(("category", "split"), (category, split), own.groups() if own else (category, split)):
            if wanted not in (None, found):
                raise ValueError(f"{root} is a database of the {what} {found!r}; expected {wanted!r}")
        return root
    end = f"_{split or 'train'}{_ENDING}"
    if category is not None:
        folders = [root / f"{category}{end}"]
    else:
        folders = sorted(root.glob(f"*{end}"))
    folders = [folder for folder in folders if (folder / "data.mdb").is_file()]
    if not folders:
        raise FileNotFoundError(f"{root} has no {category or '*'}{end}; LSUN needs {_EXPECTED}")
    if len(folders) > 1:
        names = ", ".join(folder.name.removesuffix(end) for folder in folders)
        raise ValueError(f"{root} holds several categories ({names}); say which")
    return folders[0]


_WORTH_KEEPING = 100_000  # keys; fewer are listed in a few seconds


def list_keys(path: Path, environment: Any, limit: int | None = None) -> np.ndarray:
    """The keys of a database, in its order.

    A long list is kept in the user's cache directory, one file for each path, with what tells the content of the database. A file
    that cannot be read, or that is of other content, is passed over and written anew.

    Args:
        path: Folder of the database.
        environment: The same, open.
        limit: List this many keys only; a part is not kept.

    Returns:
        ``(N,)`` bytes.
    """
    with environment.begin() as transaction:  # one view of the database for its identity and its keys
        entries = transaction.stat()["entries"]
        if entries < _WORTH_KEEPING:
            return _walk(transaction, entries, limit)
        kept, identity = _kept_file(path), _identity(path, transaction.id(), entries)
        keys = _read(kept, identity, entries)
        if keys is not None:
            return keys[:limit]
        keys = _walk(transaction, entries, limit)
    if len(keys) == entries:
        _keep(kept, identity, keys)
    return keys


def _walk(transaction: Any, entries: int, limit: int | None) -> np.ndarray:
    count = entries if limit is None else min(limit, entries)
    found = []
    silent = None if count >= _WORTH_KEEPING else True  # None: silent unless someone is looking
    with tqdm(total=count, desc="keys", unit=" keys", disable=silent) as bar:
        for key in transaction.cursor().iternext(keys=True, values=False):
            found.append(bytes(key))
            bar.update()
            if len(found) == limit:
                break
    return np.array(found, "S")


def _kept_file(path: Path) -> Path:
    checksum = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return user_cache("lsun") / f"{path.resolve().name}-{checksum}.npz"


def _identity(path: Path, transaction: int, entries: int) -> str:
    """Identity of the content: LMDB numbers its transactions, another database may have as many."""
    file = path.resolve() / "data.mdb"
    stat = file.stat()
    values = {"file": str(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "transaction": transaction}
    return json.dumps({**values, "entries": entries})


def _read(kept: Path, identity: str, entries: int) -> np.ndarray | None:
    """The kept keys, or `None` if there are none of this content. The zip's checksum finds damage."""
    try:
        with np.load(kept, allow_pickle=False) as content:
            if str(content["identity"]) != identity:
                return None
            keys = content["keys"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, AttributeError, TypeError, NotImplementedError):
        return None  # not there, or damaged in one of the ways that numpy and zipfile notice
    return keys if keys.dtype.kind == "S" and keys.shape == (entries,) else None


def _keep(kept: Path, identity: str, keys: np.ndarray) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, lambda file: np.savez(file, keys=keys, identity=np.array(identity)))
    except OSError as error:
        warnings.warn(f"the list of keys could not be kept, it will be made again: {error}", stacklevel=2)
