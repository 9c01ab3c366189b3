"""One worker and a queue: requests run in the order in which they came, and can be cancelled while they wait or run."""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from noise2map.runs.memory import hand_back_freed_memory, is_lack_of_memory

logger = logging.getLogger(__name__)

_HAND_BACK_AFTER = 16  # jobs: after each one, the next would have to get all its memory again
OUT_OF_MEMORY = "There is not enough memory; choose fewer samples or a smaller image."
UNEXPECTED = "Something went wrong inside; the server's log says what."


class Cancelled(Exception):
    """Raised inside a job that nobody waits for any more."""


class Job:
    """One request.

    Attributes:
        state: ``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``.
        done: Decoder calls that were made.
        total: Decoder calls that it takes; 0 if not known.
        result: What the work returned.
        error: A sentence, if it failed.
    """

    def __init__(self, work: Callable[["Job"], Any]) -> None:
        self._work, self._stop, self._changed = work, threading.Event(), threading.Condition()
        self.state, self.done, self.total = "waiting", 0, 0
        self.result: Any = None
        self.error = ""

    def cancel(self) -> None:
        """Stops the job: at once if it waits, at its next call of the model if it runs."""
        with self._changed:
            self._stop.set()
            if self.state == "waiting":
                self.state = "cancelled"
            self._changed.notify_all()

    @property
    def cancelled(self) -> bool:
        """True if it is to stop."""
        return self._stop.is_set()

    @property
    def over(self) -> bool:
        """True if nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    def tick(self) -> None:
        """Counts a call of the model.

        Raises:
            Cancelled: If the job is to stop.
        """
        if self.cancelled:
            raise Cancelled
        self.done += 1
        self._tell()

    def wait(self, seconds: float) -> None:
        """Returns when something changed, or after some time."""
        with self._changed:
            if not self.over:
                self._changed.wait(seconds)

    def run(self) -> None:
        """Does the work, unless it was cancelled, and keeps its result, or the sentence of its error."""
        with self._changed:
            if self.state != "waiting":
                return
            self.state = "running"
            self._changed.notify_all()
        try:
            self.result, self.state = self._work(self), "done"
        except Cancelled:
            self.state = "cancelled"
        except (ValueError, OSError, ImportError) as error:
            self.error, self.state = " ".join(str(error).split()), "failed"
        except Exception as error:
            short = is_lack_of_memory(error)
            if not short:
                logger.exception("a request failed")
            self.error, self.state = OUT_OF_MEMORY if short else UNEXPECTED, "failed"
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()


class JobQueue:
    """Runs jobs one after the other in a thread of its own.

    Args:
        most_waiting: Jobs that may wait.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most, self._jobs, self._changed, self._closed = most_waiting, deque[Job](), threading.Condition(), False
        self._running: Job | None = None
        self._thread = threading.Thread(target=self._run, name="noise2map-app", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Puts work at the end of the queue.

        Raises:
            BlockingIOError: If too many wait already.
        """
        job = Job(work)
        with self._changed:
            self._jobs = deque(one for one in self._jobs if not one.cancelled)
            if len(self._jobs) >= self._most:
                raise BlockingIOError(f"{self._most} requests are waiting already; try again in a moment.")
            self._jobs.append(job)
            self._changed.notify()
        return job

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before a job that waits, the running one included."""
        with self._changed:
            before = 0 if self._running is None else 1
            for one in self._jobs:
                if one is job:
                    break
                before += not one.cancelled
            return before

    def close(self) -> None:
        """Cancels all and ends the thread."""
        with self._changed:
            self._closed = True
            for job in (*self._jobs, *([self._running] if self._running else [])):
                job.cancel()
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        for count in itertools.count(1):
            with self._changed:
                self._running = None
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._running = job = self._jobs.popleft()
            job.run()
            if count % _HAND_BACK_AFTER == 0:
                hand_back_freed_memory()
