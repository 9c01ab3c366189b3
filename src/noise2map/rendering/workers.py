"""Worker processes with engines in them, and the chunks of a split that they take."""

import errno
import math
import multiprocessing
import os
import queue
import shutil
import signal
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.freedoom.catalog import SPLITS

CHUNK = 20


@dataclass(frozen=True)
class Task:
    """Chunks of one map; of each, the indices that are missing."""

    map_name: str
    chunks: tuple[tuple[int, frozenset[int]], ...]


def plan(split: str, count: int, finished: Container[int]) -> list[Task]:
    """Tasks for the missing ones of the first ``count`` samples of a split, by map."""
    maps = SPLITS[split]
    by_map: dict[str, list[tuple[int, frozenset[int]]]] = {}
    for chunk in range(math.ceil(count / CHUNK)):
        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, count))
        wanted = frozenset(index for index in indices if index not in finished)
        if wanted:
            by_map.setdefault(maps[chunk % len(maps)], []).append((chunk, wanted))
    return [Task(name, tuple(chunks)) for name, chunks in by_map.items()]


def missing(tasks: list[Task]) -> int:
    """Number of samples that the tasks will make."""
    return sum(len(wanted) for task in tasks for _, wanted in task.chunks)


def chunk_generator(seed: int, split: str, chunk: int, *kind: int) -> np.random.Generator:
    """The random numbers of a chunk; other ``kind`` of samples, other numbers."""
    return np.random.default_rng([seed, list(SPLITS).index(split), chunk, *kind])


def check_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        OSError: If the disk has less room than is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        text = f"not enough disk space: {what} need about {bytes_needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, text, str(folder))


_STOP_WITHIN_S = 15.0

Record = dict[str, Any]

Worker = Callable[[Any, Any, Any, Callable[[], bool], Path], None]


def run_tasks(work: Worker, job: Any, tasks: Sequence[Any], workers: int, scratch: Path, receive: Callable[[Record], None]) -> None:
    """Work on all tasks with several processes.

    Args:
        work: ``work(job, task, results, stopped, scratch)``, a function of a module; it puts a record into ``results`` for
            everything it finishes and returns early if ``stopped()``.
        job: passed on to ``work``.
        tasks: one after another for each process.
        workers: processes.
        scratch: folder of the engines.
        receive: called in this process with each record.

    Raises:
        Exception: the first error that a worker reports.
        ChildProcessError: if a worker is killed.
    """
    context = multiprocessing.get_context("spawn")
    todo: Queue = context.Queue()
    results: Queue = context.Queue()
    stop = context.Event()
    for task in tasks:
        todo.put(task)
    count = min(workers, len(tasks))
    for _ in range(count):
        todo.put(None)
    arguments = (work, job, todo, results, stop, scratch, os.getpid())
    processes: list[BaseProcess] = [context.Process(target=_serve, args=arguments, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        collect(processes, results, receive)
    finally:
        stop.set()
        _wind_up(processes, results, receive)
        todo.cancel_join_thread()


def collect(processes: Sequence[Any], results: Any, receive: Callable[[Record], None]) -> None:
    """Receive records until every worker has said that it is done; raise the first error that one reports."""
    working = len(processes)
    while working:
        try:
            message = results.get(timeout=0.5)
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise ChildProcessError(f"a render worker ended with exit code {dead[0]}; run again to go on") from None
            continue
        if isinstance(message, BaseException):
            raise message
        if message is None:
            working -= 1
        else:
            receive(message)


def _wind_up(processes: Sequence[BaseProcess], results: Queue, receive: Callable[[Record], None]) -> None:
    """Let the workers close their engines, keep what they still report, and terminate who does not end."""
    deadline = time.monotonic() + _STOP_WITHIN_S
    started = [process for process in processes if process.pid is not None]
    while any(process.is_alive() for process in started) and time.monotonic() < deadline:
        try:
            message = results.get(timeout=0.05)
        except queue.Empty:
            continue
        if isinstance(message, dict):
            receive(message)
    for process in started:
        if process.is_alive():
            process.terminate()
        process.join(5)


def _serve(work: Worker, job: Any, todo: Queue, results: Queue, stop: Event, scratch: Path, parent: int) -> None:
    """A worker process: task after task until there are no more, it is told to stop, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us
    signal.signal(signal.SIGTERM, _leave)

    def stopped() -> bool:
        return stop.is_set() or os.getppid() != parent

    try:
        while not stopped():
            task = todo.get()
            if task is None:
                break
            work(job, task, results, stopped, scratch)
        results.put(None)
    except Exception as error:
        if not stopped():
            results.put(portable(error))
    finally:
        if os.getppid() != parent:
            results.cancel_join_thread()
            shutil.rmtree(scratch, ignore_errors=True)


def _leave(signal_number: int, frame: object) -> None:
    raise SystemExit(128 + signal_number)


def portable(error: Exception) -> Exception:
    """An error that survives the way to the parent process; the engine's own types become OSError."""
    if type(error).__module__ == "builtins":
        return error
    return OSError(f"the engine failed: {type(error).__name__}: {error}")
