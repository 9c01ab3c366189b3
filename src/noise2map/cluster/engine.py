"""The engine on Ray Data: shards stream to models that live in worker processes, and their maps stream back."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from noise2map.cluster.worker import ModelSource, ShardWorker
from noise2map.inference.shards import Job, Outcome, Shard

_STARTS, _CONNECT_S = 3, 10.0


def import_ray() -> Any:
    """Ray with Ray Data; it sends no usage statistics.

    Raises:
        ImportError: Saying how it is installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # what fails is raised; its own notes on restarts are no user's business
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("engine 'ray' needs the package ray with Ray Data; install noise2map[scale]") from error
    return ray


class RayEngine:
    """Does shards by models in worker processes, on this machine or on a cluster; see :data:`noise2map.inference.shards.Engine`.

    Every worker loads the model once and computes with one thread, or on one GPU. A worker that dies is started again, and
    what it had not finished is done again. The driver, who runs this, writes all files: the workers need to see the images
    and the model, not the output folder.

    Args:
        model: Which model the workers load.
        workers: Number of processes; None for one on each GPU of the cluster, or else on each of its cores.
        address: Of a running cluster (``"auto"``, ``"HOST:6379"``, ``"ray://HOST:10001"``); None for one on this machine that
            ends with the run.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If there is no positive number of workers.
    """

    def __init__(self, model: ModelSource, *, workers: int | None = None, address: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; expected at least 1")
        self.model, self.workers, self.address = model, workers, address
        self._ray = import_ray()

    def __call__(self, shards: Sequence[Shard], job: Job) -> Iterator[Outcome]:
        """One outcome for each image; the shards come in any order.

        Raises:
            OSError: If the cluster cannot be reached, or goes away.
            ValueError: If the workers cannot do their work, such as with a model that they do not find.
        """
        if not shards:
            return
        with self._cluster(len(shards)):
            data = self._ray.data
            context = data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            resources = self._ray.cluster_resources()
            gpus = int(resources.get("GPU", 0)) if self.model.on_gpu else 0
            count = min(self.workers or gpus or int(resources.get("CPU", 1)), len(shards))
            results = data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
                ShardWorker,
                fn_constructor_args=(self.model, job),
                batch_size=1,
                compute=data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=1 if gpus else 0,
            )
            with _as_sentences():
                for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                    yield from map(_outcome, block.to_pylist())

    @contextmanager
    def _cluster(self, shards: int) -> Iterator[None]:
        ray, mine = self._ray, not self._ray.is_initialized()
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if mine:
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
            if self.address is None:
                count = min(self.workers or os.cpu_count() or 1, shards)
                self._start(address="local", num_cpus=count, include_dashboard=False, **quiet)
            else:
                _check_reachable(self.address)
                try:
                    ray.init(address=self.address, **quiet)
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise ConnectionError(f"there is no cluster of Ray at address {self.address!r}: {error}") from error
        try:
            yield
        finally:
            if mine:
                ray.shutdown()

    def _start(self, **options: Any) -> None:
        """Start Ray on this machine; it gives up after 30 seconds, which a busy machine may need more than once."""
        for attempt in range(_STARTS):
            try:
                self._ray.init(**options)
            except Exception as error:  # Ray's own, without a kind
                self._ray.shutdown()
                if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                    raise OSError(f"Ray could not be started on this machine: {error}") from error
            else:
                return


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody answers: Ray would go on asking for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"there is no cluster of Ray at address {address!r}: {error}") from error


@contextmanager
def _as_sentences() -> Iterator[None]:
    """Errors of a worker without the traces of two processes; the last line of Ray's message is the error itself."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        kind, _, text = str(error).strip().rpartition("\n")[2].partition(": ")
        raise ValueError(f"a worker of Ray failed: {text or kind or type(error).__name__}") from error


def _outcome(row: dict[str, Any]) -> Outcome:
    line = None if row["line"] is None else json.loads(row["line"])
    return Outcome(row["shard"], row["id"], line, dict(zip(row["names"], row["contents"])), row["failure"])
