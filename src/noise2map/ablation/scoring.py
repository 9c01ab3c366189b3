"""Scores of trained decoders, on features of the scored images that are computed once for all of them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from noise2map.ablation.arms import Decoding
from noise2map.evaluation.evaluate import EncodedBatch, ProtocolResult, evaluate, image_batches
from noise2map.evaluation.report import result_rows
from noise2map.models.decoding import DecodingOptions
from noise2map.runs.files import json_values, write_file, write_json
from noise2map.tasks import task_of
from noise2map.tasks.scoring import ScoringOptions

HELD_BYTES = 2 * 2**30
"""Features are kept in memory up to this size; beyond, every decoder encodes the images anew."""

_SPEEDS = ("images_per_second", "encode_ms", "decode_ms")  # depend on what else the machine does
_BATCH = 8


class Frames:
    """The images that are scored, encoded once.

    Args:
        model: a model with the encoder that all decoders were trained on.
        processor: its image processor.
        dataset: raw samples.
    """

    def __init__(self, model: Any, processor: Any, dataset: Any) -> None:
        self._processor, self._dataset = processor, dataset
        self._held: list[EncodedBatch] | None = []
        size = 0
        for batch in image_batches(model, processor, dataset, _BATCH):
            with torch.no_grad():
                batch.encode()
            assert batch.features is not None
            size += batch.features.nbytes
            if size > HELD_BYTES:
                self._held = None
                break
            self._held.append(batch)

    def __len__(self) -> int:
        return len(self._dataset)

    def sample(self, index: int) -> Mapping[str, Any]:
        """A raw sample."""
        return self._dataset[index]

    def batches(self, model: Any) -> Iterator[EncodedBatch]:
        """Batches for another decoder."""
        if self._held is None:
            yield from image_batches(model, self._processor, self._dataset, _BATCH)
        else:
            yield from (replace(batch, model=model) for batch in self._held)


@contextmanager
def with_time_difference(model: Any, value: float | None) -> Iterator[None]:
    """Inside, the model's sampling grid has this time difference; `None` for its own."""
    before = model.config.time_difference
    model.config.time_difference = before if value is None else value
    try:
        yield
    finally:
        model.config.time_difference = before


def score(model: Any, frames: Frames, decodings: Sequence[Decoding], progress: Callable[[int], object] | None = None) -> list[Any]:
    """Scores of a model under several decodings.

    Args:
        model: in evaluation mode.
        frames: what it is scored on.
        decodings: how.
        progress: called with the number of images just done.

    Returns:
        A pair for each decoding: its row of scores, and the counts of each image ``(N, 3, K)``, with the place of each image under
        ``"place"`` of the row.
    """
    task, found = task_of(model), {}
    for difference in dict.fromkeys(one.time_difference for one in decodings):
        chosen = [one for one in decodings if one.time_difference == difference]
        results = [
            ProtocolResult(DecodingOptions(num_inference_steps=one.steps), task.scorer(model, ScoringOptions())) for one in chosen
        ]
        with with_time_difference(model, difference):
            evaluation = evaluate(task, frames.batches(model), results, model.device, progress)
        rows = result_rows(evaluation, {}, resamples=0)
        for one, row, result in zip(chosen, rows, results):
            row = {name: value for name, value in row.items() if name not in _SPEEDS}
            found[one] = {**row, "places": evaluation.places}, result.scorer.image_rows()
    return [found[one] for one in decodings]


class Scores:
    """The stored scores of one run, a file of numbers and one of counts for each decoding.

    Args:
        folder: where they lie.
        settings: what they depend on beside the run: stored scores of other settings do not count.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json_values(dict(settings))

    def read(self, decoding: Decoding) -> tuple[dict[str, Any], Tensor] | None:
        """Row and counts, or `None` where there are none of these settings."""
        path = self.folder / f"{decoding.key}.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["settings"] != self.settings:
            return None
        return record["row"], load_file(path.with_suffix(".safetensors"))["counts"]

    def write(self, decoding: Decoding, row: Mapping[str, Any], counts: Tensor) -> None:
        """Store row and counts; the row comes last, so that what has one is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{decoding.key}.json"
        path.unlink(missing_ok=True)
        write_file(path.with_suffix(".safetensors"), lambda file: file.write(_as_bytes(counts)))
        write_json(path, json_values({"settings": self.settings, "row": dict(row)}))


def _as_bytes(counts: Tensor) -> bytes:
    return save({"counts": counts.contiguous()})
