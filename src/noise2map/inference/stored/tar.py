"""Images in tars, such as the shards of WebDataset: listed by their headers alone, read at their places."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from noise2map.inference.stored.files import StoredFile
from noise2map.inference.stored.images import MemberImage, safe_name

SUFFIXES = (".tar",)


@dataclass(frozen=True)
class TarImage(MemberImage):
    """An image in a tar.

    Attributes:
        start: Byte of the tar at which its content begins.
        length: Bytes of its content.
    """

    start: int
    length: int

    def read(self) -> bytes:
        """The bytes of the member."""
        return self.file.read(self.start, self.length)

    def record(self) -> dict[str, Any]:
        """As of any member, with its own size."""
        return {**super().record(), "bytes": self.length}


def list_tar(file: StoredFile, is_image: Callable[[PurePosixPath], bool]) -> tuple[list[TarImage], str | None]:
    """Images of a tar that is not compressed, in the order in which it holds them.

    Args:
        file: The tar.
        is_image: Test of the name of a member; other members (labels, captions) are passed over, and so are hidden ones.

    Returns:
        The images, and why those after them cannot be read; None if the tar is whole.

    Raises:
        OSError: If the file cannot be read.
    """
    found: list[TarImage] = []
    try:
        with file.open() as content, tarfile.open(fileobj=content, mode="r:") as tar:
            while (member := tar.next()) is not None:
                name = safe_name(member.name)
                if member.isreg() and not member.issparse() and is_image(PurePosixPath(name)):
                    if member.offset_data + member.size > file.size:
                        return found, "the tar is cut off"
                    found.append(TarImage(file, name, member.offset_data, member.size))
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps what it met: as long as the tar
    except tarfile.TarError as error:
        return found, f"no tar that can be read to its end ({error}); a compressed one has to be unpacked"
    return found, None
