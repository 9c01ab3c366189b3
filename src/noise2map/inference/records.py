"""The folder of a prediction run: which images are done, with which settings; it can be gone on with."""

import errno
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from noise2map import __version__
from noise2map.report.files import write_bytes, write_json, write_text

SETTINGS = "settings.json"
LINES = "predictions.jsonl"


def check_writable(folder: Path) -> None:
    """Make ``folder`` and a file in it, before any heavy work.

    Raises:
        OSError: Naming the folder, if that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to the output folder ({error.strerror})", str(folder)) from error


def output_names(ids: list[str]) -> dict[str, str]:
    """A name without suffix for the files of each image: ``rooms/a.jpg`` -> ``rooms/a``.

    Images that differ in the suffix only keep it (``rooms/a.jpg`` and ``rooms/a.png``), so that no file is written twice.
    """
    stems = {one: one[: -len(Path(one).suffix)] if Path(one).suffix else one for one in ids}
    counts: dict[str, int] = {}
    for stem in stems.values():
        counts[stem] = counts.get(stem, 0) + 1
    every = set(ids)
    return {one: stem if counts[stem] == 1 and stem not in every else one for one, stem in stems.items()}


class OutputFolder:
    """Where a run writes. An image is complete when it has a line in ``predictions.jsonl``, which is written last.

    Attributes:
        root: The folder.
        done: Image id to its line, as written by this run or an earlier one with the same settings.
    """

    def __init__(self, root: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        """Open a new run, or go on with an earlier one.

        Args:
            root: The folder, made when missing.
            settings: Whatever decides what the maps look like; JSON values.
            overwrite: Forget an earlier run; its files are replaced one by one.

        Raises:
            OSError: If the folder cannot be made or written.
            ValueError: If an earlier run had other settings, unless ``overwrite``.
        """
        self.root = root
        self.done: dict[str, dict[str, Any]] = {}
        check_writable(root)
        settings = json.loads(json.dumps(settings))  # tuples become lists, as they are in the file
        if not overwrite and (root / SETTINGS).is_file():
            self._check_same(settings)
            self.done = self._read_lines()
        # Lines first: a run killed between the two writes must not pair old lines with new settings.
        write_text(root / LINES, "".join(json.dumps(line) + "\n" for line in self.done.values()))
        write_json(root / SETTINGS, {**settings, "noise2map": __version__})

    def _check_same(self, settings: dict[str, Any]) -> None:
        path = self.root / SETTINGS
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); use --overwrite or another --out") from error
        other = [name for name in settings if before.get(name) != settings[name]]
        if other:
            changes = ", ".join(f"{name} {before.get(name)!r} -> {settings[name]!r}" for name in other)
            raise ValueError(f"{self.root} holds maps of other settings ({changes}); use --overwrite or another --out")

    def _read_lines(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        path = self.root / LINES
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a killed run may be cut off
                line = json.loads(text)
                lines[line["id"]] = line
        return lines

    def is_done(self, image_id: str, source: dict[str, Any]) -> bool:
        """Whether the image, unchanged since, has its line and all its files."""
        line = self.done.get(image_id)
        if line is None or line.get("source") != source:
            return False
        return all((self.root / name).is_file() for name in line["files"].values())

    def write(self, line: dict[str, Any], files: dict[str, bytes]) -> None:
        """Write the files of one image, then its line.

        Args:
            line: What is known of it, with ``id`` and ``files``.
            files: Path below the folder to content.

        Raises:
            OSError: If something cannot be written; every file that is there is whole, and the line is missing.
        """
        for name, data in files.items():
            write_bytes(self.root / name, data)
        path = self.root / LINES
        data = (json.dumps(line, allow_nan=False) + "\n").encode("utf-8")
        with open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            except BaseException:
                file.truncate(before)
                raise
        self.done[line["id"]] = line
