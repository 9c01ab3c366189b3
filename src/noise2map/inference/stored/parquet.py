"""Images in parquet tables: a column of encoded images, bare or with their paths as the datasets of the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from noise2map.inference.stored.files import StoredFile
from noise2map.inference.stored.images import MemberImage, safe_name

SUFFIXES = (".parquet",)

_COLUMN = "image"


@dataclass(frozen=True)
class ParquetImage(MemberImage):
    """An image in a parquet table.

    Attributes:
        column: Its column.
        group: Its row group, which is read as a whole.
        row: Its row in that group.
    """

    column: str
    group: int
    row: int

    def read(self) -> bytes:
        """The bytes of the row."""
        value = _read_group(self.file, self.column, self.group)[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise OSError(f"cannot read image {self}: the row holds no bytes")
        return content


def list_parquet(file: StoredFile) -> list[ParquetImage]:
    """Images of a table, in the order of its rows.

    Their names are the paths in the column, where it has them, else the numbers of the rows, from ``000000`` on.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If the file cannot be read.
        ValueError: If it has no column of images, or several.
    """
    found: list[ParquetImage] = []
    with _opened(file) as table:
        column, has_paths = _image_column(table.schema_arrow, file.address)
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            paths: list[Any] = [None] * count
            if has_paths:
                paths = [
                    value and value["path"] for value in table.read_row_group(group, columns=[f"{column}.path"])[column].to_pylist()
                ]
            for row, path in enumerate(paths):
                name = safe_name(path) if path else f"{len(found):06d}"
                found.append(ParquetImage(file, name, column, group, row))
    return found


def _image_column(schema: Any, address: str) -> tuple[str, bool]:
    """The column of images, and whether it has their paths."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        return kind is not None and (kinds.is_binary(kind) or kinds.is_large_binary(kind))

    found: dict[str, bool] = {}
    for field in schema:
        inside = {one.name: one.type for one in field.type} if kinds.is_struct(field.type) else {}
        if is_bytes(field.type) or is_bytes(inside.get("bytes")):
            found[field.name] = "path" in inside
    if _COLUMN in found or len(found) == 1:
        column = _COLUMN if _COLUMN in found else next(iter(found))
        return column, found[column]
    raise ValueError(f"{address} has the columns {', '.join(schema.names)}; expected one of encoded images, named '{_COLUMN}'")


@lru_cache(maxsize=1)  # images are read in the order of their ids, which is that of the rows where those have no paths
def _read_group(file: StoredFile, column: str, group: int) -> Any:
    with _opened(file) as table:
        return table.read_row_group(group, columns=[column])[column]


@contextmanager
def _opened(file: StoredFile) -> Iterator[Any]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("parquet tables need the package pyarrow; install noise2map[scale]") from error
    with file.open() as content:
        try:
            yield ParquetFile(content)
        except ArrowInvalid as error:
            raise OSError(f"cannot read {file.address}: {error}") from error
