"""Output folders of commands: checked and locked before any work, resumed item by item, recognised when met again."""

import errno
import json
import os
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from noise2map import __version__
from noise2map.runs.files import write_bytes, write_json, write_text

SETTINGS = "settings.json"
LINES = "predictions.jsonl"

# Key of settings.json that marks an output folder as ours, and key that says that a command wrote all of it.
_MARK, _FINISHED = "noise2map", "finished"
# Key of settings.json for what was asked for; it does not decide what the files look like.
_REQUEST = "request"

_LOCK = ".noise2map.lock"

_SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini", "lost+found"})


def is_output_folder(folder: Path) -> bool:
    """Test for an output folder of this library: its ``settings.json`` carries our mark."""
    try:
        return _MARK in json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


class OutputFolder:
    """The folder a command writes to. The contract that every ``--out`` of a folder keeps:

    1. **Nothing foreign is written over.** A folder that holds files and no ``settings.json`` of ours is refused, unless
       ``overwrite``: then files of equal names are replaced and the others stay.
    2. **Settings decide.** ``settings.json`` holds whatever decides what the files look like. With equal settings a run goes on
       where it stopped; with other settings it is refused, unless ``overwrite`` or the earlier run finished nothing.
    3. **A failed start leaves nothing.** ``settings.json`` is written just before the first item; a folder that was made for a
       run that wrote nothing is removed.
    4. **An item is finished when it has its line** in ``predictions.jsonl``, written after its files, each of which appears
       whole or not at all. An id has one line.
    5. **One process at a time.** The folder is locked until :meth:`close`; a second process is refused in one line. The lock goes
       with the process, however that ends, so none is left behind.
    6. **It is known again.** :func:`is_output_folder` tells outputs, so that they are not taken for inputs.

    Use it as a context manager. Commands that write their files in one go use :func:`claim`.

    Attributes:
        root: The folder.
        done: Id to line of the items finished by this run or an earlier one with the same settings.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> None:
        """Make, check and lock the folder; with ``settings`` open the run, too.

        Args:
            root: The folder, made when missing.
            settings: Whatever decides what the files look like, JSON values; None to give them later to :meth:`use`, for
                commands whose settings are known only after heavy work.
            overwrite: Forget an earlier run and write among foreign files; files are replaced one by one.

        Raises:
            OSError: If the folder cannot be made or written; `BlockingIOError` if another process writes to it.
            ValueError: If it holds foreign files or an earlier run had other settings, unless ``overwrite``.
        """
        self.root, self.overwrite = Path(root), overwrite
        self.done: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, Any] | None = None
        self._request: dict[str, Any] = {}
        self._begun = False
        made = _make(self.root)
        self._lock = _lock(self.root)
        self._release = weakref.finalize(self, _unlock, self._lock, self.root, made)
        try:
            if not overwrite:
                _refuse_foreign(self.root)
            if settings is not None:
                self.use(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write to the folder; ``done`` and ``root`` stay readable."""
        self._release()

    def recall(self, request: Mapping[str, Any]) -> bool:
        """Go on with an earlier run of an equal request, before any heavy work that would tell the settings.

        Args:
            request: What was asked for, JSON values: with equal files everything follows from it.

        Returns:
            Whether there was such a run; ``done`` holds its lines then, and :meth:`use` need not be called.
        """
        self._request = _as_json(request)
        if self.overwrite or not (self.root / SETTINGS).is_file():
            return False
        before = _read_settings(self.root)
        if not self._request or before.get(_REQUEST) != self._request:
            return False
        self.use(_plain(before))
        return True

    def use(self, settings: Mapping[str, Any]) -> None:
        """Open a new run, or go on with an earlier one of equal settings.

        Raises:
            ValueError: If an earlier run finished something with other settings, unless ``overwrite``.
        """
        self._settings = _as_json(settings)
        if self.overwrite or not (self.root / SETTINGS).is_file():
            return
        before = _read_settings(self.root)
        lines = self._read_lines()
        plain = _plain(before)
        if plain == self._settings:
            self.done, self._begun = lines, True
            if (self.root / LINES).is_file():
                self._rewrite_lines()
        elif lines or before.get(_FINISHED):
            names = [name for name in {**plain, **self._settings} if plain.get(name) != self._settings.get(name)]
            changes = ", ".join(f"{name} {plain.get(name)!r} -> {self._settings.get(name)!r}" for name in names)
            raise ValueError(f"{self.root} holds results of other settings ({changes}); use --overwrite or another --out")

    def _read_lines(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        path = self.root / LINES
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a killed run may be cut off
                line = json.loads(text)
                if isinstance(line["files"], dict):
                    lines[line["id"]] = line
        return lines

    def _rewrite_lines(self) -> None:
        """Make the file hold the lines of ``done`` and nothing else."""
        path, text = self.root / LINES, "".join(json.dumps(line) + "\n" for line in self.done.values())
        if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
            write_text(path, text)

    def begin(self, *, finished: bool = False) -> None:
        """Write ``settings.json``, once: the folder is ours from now on. :meth:`write` does so by itself.

        Raises:
            OSError: If it cannot be written.
        """
        if self._settings is None:
            raise RuntimeError("the folder has no settings yet: call use() first")
        if not self._begun and (self.root / LINES).is_file():
            self._rewrite_lines()  # first: a run killed between the two writes must not pair old lines with new settings
        if not self._begun or finished:
            mark = {_MARK: __version__, _FINISHED: True} if finished else {_MARK: __version__}
            asked = {_REQUEST: self._request} if self._request else {}
            write_json(self.root / SETTINGS, {**self._settings, **asked, **mark})
        self._begun = True

    def is_done(self, item: str, source: Mapping[str, Any]) -> bool:
        """Test that the item, unchanged since, has its line and all its files."""
        line = self.done.get(item)
        if line is None or line.get("source") != source:
            return False
        return all((self.root / name).is_file() for name in line["files"].values())

    def forget(self, items: list[str]) -> None:
        """Take back the lines of items that are to be done again; their files stay until they are replaced."""
        stale = [item for item in items if item in self.done]
        for item in stale:
            del self.done[item]
        if stale:
            self._rewrite_lines()

    def write(self, line: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """Write the files of one item, then its line, in the place of an older line of that id.

        Args:
            line: What is known of it, with ``id`` and ``files`` (kind to path below the folder).
            files: Path below the folder to content.

        Raises:
            OSError: If something cannot be written; every file that is there is whole, and the line is missing.
        """
        self.write_files(line["id"], files)
        self.write_lines([line])

    def write_files(self, item: str, files: Mapping[str, bytes]) -> None:
        """Write the files of an item that gets its line later, see `write_lines`; an older line of it is taken back.

        Args:
            item: Its id.
            files: Path below the folder to content.

        Raises:
            OSError: If something cannot be written; every file that is there is whole.
        """
        if not self._begun:
            self._rewrite_lines()
        self.begin()
        self.forget([item])
        for name, data in files.items():
            write_bytes(self.root / name, data)

    def write_lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines of items whose files are there: all of them or none.

        Args:
            lines: What is known of each, with ``id`` and ``files`` (kind to path below the folder).

        Raises:
            OSError: If they cannot be written.
        """
        path = self.root / LINES
        data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("utf-8")
        if not data:
            return
        with open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            except BaseException:
                file.truncate(before)
                raise
        self.done.update({line["id"]: line for line in lines})


@contextmanager
def claim(root: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[OutputFolder]:
    """Hold an output folder for a command that writes its files in one go: the contract of `OutputFolder` without lines.

    The folder is checked, locked and marked as ours before the block runs: the same command goes on with what a run that was
    killed has left. Once a block has ended well, other settings are refused. One that fails and wrote nothing leaves all as it was.

    Args:
        root: The folder, made when missing.
        settings: Whatever decides what the files look like; JSON values.
        overwrite: Replace results of other settings, and write among foreign files.

    Yields:
        The folder.

    Raises:
        OSError: If the folder cannot be made or written; `BlockingIOError` if another process writes to it.
        ValueError: If it holds foreign files or results of other settings, unless ``overwrite``.
    """
    with OutputFolder(root, settings, overwrite=overwrite) as folder:
        before = {path: path.read_bytes() if path.is_file() else None for path in (folder.root / SETTINGS, folder.root / LINES)}
        folder.begin()  # now: a process that is killed has no time to say it
        begun = _state(folder.root)
        try:
            yield folder
        except BaseException:
            if _state(folder.root) == begun:
                with suppress(OSError):  # the block's own error is the one to tell
                    for path, content in before.items():
                        path.unlink(missing_ok=True) if content is None else write_bytes(path, content)
            raise
        folder.begin(finished=True)


@contextmanager
def locked(root: str | Path) -> Iterator[None]:
    """Hold the lock of a folder that keeps a contract of its own (a training run): rule 5 of `OutputFolder` alone.

    Args:
        root: The folder, made when missing; removed again if it was made here and stays empty.

    Raises:
        OSError: If the folder cannot be made or written; `BlockingIOError` if another process writes to it.
    """
    root = Path(root)
    made = _make(root)
    descriptor = _lock(root)
    try:
        yield
    finally:
        _unlock(descriptor, root, made)


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value, default=str))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings proper of the content of ``settings.json``."""
    return {name: value for name, value in settings.items() if name not in (_MARK, _FINISHED, _REQUEST)}


def _not_writable(folder: Path, error: OSError) -> OSError:
    return type(error)(error.errno, f"cannot write to the output folder ({error.strerror})", str(folder))


def _make(root: Path) -> bool:
    """Make the folder; whether it was missing."""
    scheme, colon, below = root.as_posix().partition(":/")
    if colon and len(scheme) > 1 and "/" not in scheme and not Path(f"{scheme}:").exists():  # a path has lost one slash of two
        raise ValueError(f"expected a folder of this machine to write to, got the address {scheme}://{below}")
    try:
        missing = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(root, error) from error
    return missing


def _visible(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if not name.startswith(".") and name not in _SYSTEM_FILES)


def _state(root: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of every entry: a file that is replaced is another one, a directory that is written to is touched."""
    statuses = {name: os.lstat(root / name) for name in _visible(root)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in statuses.items()}


def _refuse_foreign(root: Path) -> None:
    names = _visible(root)
    if names and not is_output_folder(root):
        if SETTINGS in names:
            _read_settings(root)  # one of ours that is broken is told as such
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{root} holds files that noise2map did not write ({shown}); use another --out, or --overwrite to write among them"
        )


def _read_settings(root: Path) -> dict[str, Any]:
    path = root / SETTINGS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use --overwrite or another --out") from error


def _lock(root: Path) -> int:
    """Lock a file in the folder, which also shows that the folder can be written -> its descriptor.

    The lock belongs to the open file: the system lifts it when the process ends. Where the file system knows no locks, the
    folder is used without one.
    """
    path = root / _LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _not_writable(root, error) from error
        try:
            _lock_descriptor(descriptor)
        except OSError as error:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise BlockingIOError(
                f"another process{f' ({owner})' if owner else ''} is writing to {root}; wait for it, or use another --out"
            ) from error
        with suppress(OSError):
            # The holder before may have removed the file that was just locked: then the lock protects nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)


def _lock_descriptor(descriptor: int) -> None:
    """Lock an open file, or raise `OSError` at once if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            raise


def _unlock(descriptor: int, root: Path, made: bool) -> None:
    """Lift the lock and remove its file, and the folder if it was made for nothing."""
    with suppress(OSError):
        os.unlink(root / _LOCK)
    os.close(descriptor)
    if made:
        with suppress(OSError):  # it is not empty: as it should be
            os.rmdir(root)
