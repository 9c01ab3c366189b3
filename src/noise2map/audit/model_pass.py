"""The pass of a model over labelled images: one line and two small files for each, so that a run may stop and go on."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noise2map.audit.regions import denied_regions
from noise2map.audit.survey import source_of
from noise2map.inference.batches import batches
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import PredictionOptions
from noise2map.models.image_processing import to_rgb
from noise2map.models.resizing import resize_logits
from noise2map.runs.files import encode_image
from noise2map.runs.output_folder import OutputFolder
from noise2map.tasks import task_of
from noise2map.tasks.contradiction import contradiction
from noise2map.tasks.segmentation import label_image

WINDOW = 4
"""The part of an image that is proposed for labelling has a side of one in so many of the image's sides."""


def most_uncertain_window(values: np.ndarray) -> tuple[tuple[int, int, int, int], float]:
    """The window with the highest mean of a map ``(H, W)``, a quarter of each side; of equal ones the first from above left.

    Returns:
        Left, top, right and bottom in pixels, the latter two exclusive; and the mean.
    """
    height, width = (max(1, side // WINDOW) for side in values.shape)
    sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    # Rounding of sums must not choose between equal windows.
    top, left = np.unravel_index(int(windows.round(6).argmax()), windows.shape)
    mean = float(windows[top, left]) / (height * width)
    return (int(left), int(top), int(left) + width, int(top) + height), mean


class ModelPass:
    """Runs a model over the images that have no line yet.

    Args:
        predictor: The model with its processor.
        options: How maps are decoded.
        uncertainty: The kind of uncertainty that ranks what to label next.
        min_share: Least area of a region, as a share of the image.
    """

    def __init__(self, predictor: Predictor, options: PredictionOptions, uncertainty: str, min_share: float) -> None:
        self.predictor, self.options = predictor, options.resolved(predictor.model.config)
        self.uncertainty, self.min_share = uncertainty, min_share
        self.task = task_of(predictor.model)
        self.ignore_index = predictor.model.config.semantic_loss_ignore_index
        self._waiting: dict[str, tuple[Tensor, str]] = {}  # labels and checksum of images that are in a batch

    def run(
        self, dataset: Any, checksums: dict[str, str], folder: OutputFolder, batch_size: int, progress: Callable[[], object]
    ) -> int:
        """Write what is missing in the folder.

        Args:
            dataset: Raw samples.
            checksums: Id of every sample to its checksum, in the order of the dataset.
            folder: Where to.
            batch_size: The most images at a time.
            progress: Called after each image.

        Returns:
            How many images the model has looked at.

        Raises:
            ValueError: If the run has no uncertainty of that kind, or a sample has changed since it was surveyed.
        """
        count = 0
        todo = self._images(dataset, checksums, folder, progress)
        for batch in batches(todo, self.predictor.model, self.predictor.processor, self.options, batch_size):
            out = self.predictor.decode_batch(batch, batch.keys, self.options)
            if self.uncertainty not in out.uncertainties:
                raise ValueError(
                    f"uncertainty is {self.uncertainty!r}, which a run of {self.options.name} does not have; expected one of "
                    f"{', '.join(out.uncertainties)}, or more steps or samples"
                )
            for row, name in enumerate(batch.keys):
                folder.write(*self._examine(out, row, name, (batch.size[1], batch.size[0])))
                count += 1
                progress()
        return count

    def _images(
        self, dataset: Any, checksums: dict[str, str], folder: OutputFolder, progress: Callable[[], object]
    ) -> Iterator[tuple[str, Image.Image]]:
        """Images that are not done; of a done one nothing is read."""
        for index, (name, checksum) in enumerate(checksums.items()):
            if folder.is_done(name, {"checksum": checksum}):
                progress()
                continue
            sample = dataset[index]
            truth = self.task.truth(sample)
            if source_of(sample, truth.numpy()) != checksum:
                raise ValueError(f"{name} has changed since the labels were read; run the command again")
            self._waiting[name] = truth, checksum
            yield name, to_rgb(sample["image"])

    def _examine(self, out: Any, row: int, name: str, processed: tuple[int, int]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The line and the files of one image."""
        truth, checksum = self._waiting.pop(name)
        size = (int(truth.shape[0]), int(truth.shape[1]))
        flag = bool(out.log_probabilities)
        logits = resize_logits(out.logits[row : row + 1].float(), processed, size, log_probabilities=flag)[0]
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(f"the model's output for {name} is NaN or infinite")
        found = contradiction(logits, truth.to(logits.device), self.ignore_index)
        unsure = out.uncertainties_at(processed, size, rows=[row], kinds=[self.uncertainty])[self.uncertainty][0].cpu().numpy()
        window, most = most_uncertain_window(unsure)
        regions = denied_regions(found, self.min_share)
        known = int((found.label >= 0).sum())
        kind = np.uint8 if logits.shape[0] <= 256 else np.uint16
        paths = {"map": f"maps/{name}.png", "regions": f"regions/{name}.json"}
        line = {
            "id": name,
            "files": paths,
            "source": {"checksum": checksum},
            "size": [size[1], size[0]],
            "known": known,
            "denied": int(found.denied.sum()),
            "log_label": round(float(found.log_label.sum(dtype=np.float64)) / max(known, 1), 4),
            "uncertainty": round(float(unsure.mean(dtype=np.float64)), 6),
            "window": list(window),
            "window_uncertainty": round(most, 6),
            "regions": len(regions),
        }
        labels = label_image(found.model.astype(kind), self.predictor.palette)
        files = {
            paths["map"]: encode_image(labels),
            paths["regions"]: json.dumps([one.as_json() for one in regions]).encode(),
        }
        return line, files
