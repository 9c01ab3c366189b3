"""Files here and at addresses that fsspec opens (``s3://``, ``gs://``, ``hdfs://``, ``file://``), read whole or in part."""

import glob
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

# What file systems call the version of a file; most know one of them.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "modification_time", "updated")

_BUFFER = 2**16  # bytes; what lies behind it reads ahead by itself


def is_address(source: Any) -> bool:
    """Test for an address that is read through fsspec: a scheme before ``://``, which is not http(s)."""
    scheme, colon, _ = str(source).partition("://") if isinstance(source, str) else ("", "", "")
    return bool(colon) and scheme.lower() not in ("http", "https") and "/" not in scheme and not scheme.startswith(".")


@dataclass(frozen=True)
class StoredFile:
    """A file here or at an address.

    Attributes:
        address: Absolute path, or address with its scheme.
        size: Bytes.
        version: What changes with its content: time of the last change here, a checksum or a time elsewhere.
    """

    address: str
    size: int
    version: str

    @classmethod
    def here(cls, path: Path) -> "StoredFile":
        """A file of this machine.

        Raises:
            OSError: If there is none.
        """
        status = path.stat()
        return cls(os.path.abspath(path), status.st_size, str(status.st_mtime_ns))

    @property
    def remote(self) -> bool:
        """True if it is read through fsspec."""
        return is_address(self.address)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the folders above it, and its own."""
        return tuple(part for part in self.address.partition("://")[-1 if self.remote else 0].split("/") if part)

    def record(self) -> dict[str, Any]:
        """What tells whether it has changed: JSON values."""
        if self.remote:
            return {"url": self.address, "bytes": self.size, "version": self.version}
        return {"path": self.address, "bytes": self.size, "modified_ns": int(self.version)}

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The open file.

        Raises:
            OSError: Naming it and the reason.
        """
        if not self.remote:
            with open(self.address, "rb") as file:
                yield file
            return
        with _naming(self.address):
            system, path = fsspec.core.url_to_fs(self.address)
            inner = system.open(path, "rb")
        with inner, io.BufferedReader(_Named(inner, self.address), _BUFFER) as file:
            yield file

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Its bytes, all or ``length`` of them from ``start`` on.

        Raises:
            OSError: Naming it and the reason, also if it ends before.
        """
        if length == 0:
            return b""  # no range of bytes says so
        if not self.remote:
            with open(self.address, "rb") as file:
                file.seek(start)
                content = file.read(-1 if length is None else length)
        else:
            with _naming(self.address):
                system, path = fsspec.core.url_to_fs(self.address)
                content = system.cat_file(path, start=start, end=None if length is None else start + length)
        if length is not None and len(content) < length:
            raise OSError(f"cannot read {self.address}: it ends {length - len(content)} bytes early")
        return content


def find_files(address: str) -> tuple[str, list[tuple[str, StoredFile]]]:
    """Files of an address: itself, those that match it as a pattern, or all below it as a folder; hidden ones are left out.

    Args:
        address: With its scheme; ``*``, ``?``, ``[...]`` and ``**`` as in a shell.

    Returns:
        Name of what was searched, and pairs of the path below it and the file, in the order of the paths. Below means: below the
        folder, or below the folders of a pattern that stand before its first wildcard.

    Raises:
        FileNotFoundError: If there is nothing.
        ImportError: If the package for this kind of address is not installed.
        OSError: Naming the address and the reason, if it cannot be listed.
    """
    if "::" in address:
        raise ValueError(f"address {address!r} chains file systems by '::'; expected a plain one, such as s3://bucket/photos")
    with _naming(address):
        system, path = fsspec.core.url_to_fs(address)
        system.invalidate_cache()  # it keeps listings as long as the process lives: what was uploaded since is looked for, too
        if glob.has_magic(path):
            root = fixed_part(path)
            infos = system.glob(path, detail=True)
        elif system.isdir(path):
            root, infos = path, system.find(path, detail=True)
        else:
            info = system.info(path)
            root, infos = path.rpartition("/")[0], {info["name"]: info}
        names = {name: name.removeprefix(root).strip("/") for name, info in infos.items() if info["type"] == "file"}
        shown = {name: below for name, below in names.items() if not any(part.startswith(".") for part in below.split("/"))}
        files = [
            (below, StoredFile(system.unstrip_protocol(name), int(infos[name].get("size") or 0), _version(infos[name])))
            for name, below in sorted(shown.items())
        ]
    if not files:
        raise FileNotFoundError(f"there is no file at {address}")
    return root, files


def fixed_part(pattern: str) -> str:
    """Folders of a pattern that stand before its first wildcard: ``"a/b/*/c*.png"`` -> ``"a/b"``."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])


def _version(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), "")


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Errors of a file system name the address: each client library has its own kinds, few of them errors of the system."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{address} cannot be opened: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file or folder {address}") from error
    except Exception as error:
        raise OSError(f"cannot read {address}: {error or type(error).__name__}") from error


class _Named(io.RawIOBase):
    """A file of fsspec, whose errors name its address; those of whoever reads it are left as they are."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        with _naming(self._address):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
