"""Images that are read from a stored file: one that is the whole file, or one of many in it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from noise2map.inference.stored.files import StoredFile


def safe_name(name: str) -> str:
    """A path below a folder, whatever an archive calls its members: ``"/../a/./b.png"`` -> ``"a/b.png"``."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")) or "unnamed"


@dataclass(frozen=True)
class StoredImage(ABC):
    """An image in a stored file.

    Attributes:
        file: The file.
    """

    file: StoredFile

    @abstractmethod
    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: Naming it and the reason, if it cannot be read.
        """

    @property
    def container(self) -> str | None:
        """Address of the file that it shares with others; None if the file is its own."""
        return None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the folders and files above it, and its own."""
        return self.file.parts

    def record(self) -> dict[str, Any]:
        """What tells whether it has changed: JSON values."""
        return self.file.record()

    def __str__(self) -> str:
        return self.file.address


@dataclass(frozen=True)
class RemoteImage(StoredImage):
    """An image that is a file at an address."""

    def read(self) -> bytes:
        """The whole file."""
        return self.file.read()


@dataclass(frozen=True)
class MemberImage(StoredImage):
    """An image that shares its file with others.

    Attributes:
        name: Its path in the file, see `safe_name`.
    """

    name: str

    @property
    def container(self) -> str:
        """Address of the file."""
        return self.file.address

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of the file, then its own."""
        return (*self.file.parts, *self.name.split("/"))

    def record(self) -> dict[str, Any]:
        """That of the file, with its own name."""
        return {**self.file.record(), "member": self.name}

    def __str__(self) -> str:
        return f"{self.file.address}: {self.name}"
