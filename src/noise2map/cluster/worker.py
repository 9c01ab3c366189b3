"""A worker process: one model, which predicts the shards that it is sent."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from noise2map.inference.shards import Job, Outcome, ShardPredictor


@dataclass(frozen=True)
class ModelSource:
    """Which model a worker loads, see :func:`noise2map.inference.load_model`.

    Attributes:
        name: A shipped checkpoint, a hub id, or a folder that every worker sees.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: Name of the floating-point type.
        tile: Side of the tiles of larger images, pixels; None for none.
    """

    name: str
    device: str = "auto"
    dtype: str = "float32"
    tile: int | None = None

    @property
    def on_gpu(self) -> bool:
        """True if it runs on a GPU where there is one."""
        return self.device == "auto" or self.device.startswith("cuda")


class ShardWorker:
    """What Ray keeps in a process of its own.

    Args:
        model: Which model to load.
        job: What is done to every image.

    Raises:
        OSError: If the model cannot be read here.
        ValueError: If it is another one than that of whoever started the run.
    """

    def __init__(self, model: ModelSource, job: Job) -> None:
        import torch
        import transformers

        from noise2map.inference.folder import run_settings
        from noise2map.inference.predictor import Predictor

        torch.set_num_threads(1)  # there are as many workers as cores
        transformers.utils.logging.disable_progress_bar()
        predictor = Predictor.from_pretrained(model.name, model.device, model.dtype, tile=model.tile)
        here = json.loads(json.dumps(run_settings(predictor, job.options, job.model_name)))
        asked = json.loads(json.dumps(job.settings))
        if other := [name for name in asked | here if asked.get(name) != here.get(name)]:
            raise ValueError(f"the model {model.name!r} on {socket.gethostname()} has another {other[0]} than here")
        self._predict = ShardPredictor(predictor, job)

    def __call__(self, batch: dict[str, Any]) -> Iterator[Any]:
        """Rows of a batch of shards, one for each image, as tables of Arrow.

        Args:
            batch: ``"shard"``: the shards.
        """
        for shard in batch["shard"]:
            for outcome in self._predict(shard):
                yield _row(outcome)


def _row(outcome: Outcome) -> Any:
    """A table of one row; typed, since bytes that end in zeros do not survive a guess."""
    import pyarrow

    line = None if outcome.line is None else json.dumps(outcome.line)
    values = [outcome.shard, outcome.id, line, list(outcome.files), list(outcome.files.values()), outcome.failure]
    text, content = pyarrow.string(), pyarrow.large_binary()
    kinds = [pyarrow.int64(), text, text, pyarrow.list_(text), pyarrow.list_(content), text]
    names = ["shard", "id", "line", "names", "contents", "failure"]
    return pyarrow.table([pyarrow.array([value], kind) for value, kind in zip(values, kinds)], names=names)
