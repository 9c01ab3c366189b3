"""The keys of an LMDB, listed once: LMDB has no access by index, and to walk over three million pictures takes minutes."""

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from noise2map.runs.files import user_cache, write_file

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
    digits = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return user_cache("lsun") / f"{path.resolve().name}-{digits}.npz"


def _identity(path: Path, transaction: int, entries: int) -> str:
    """What changes when the content does: LMDB numbers its transactions, another database may have as many."""
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
