"""Parity of an export with its model: the same inputs through both, at sizes and batches that the trace never saw."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion.fields import smooth_field
from noise2map.models import MapModel
from noise2map.tasks import task_of

# Height, width, images, samples. Sides that divide by nothing, a size below that of training, and one above the trace's.
CASES = ((64, 96, 1, 1), (135, 101, 3, 2))

TIMES = (1.0, 0.5, 0.0625)

TOLERANCE = 1e-3
"""Largest difference of features and predictions, as a share of their largest value, that rounding explains in float32."""


@dataclass(frozen=True)
class Parity:
    """How far two models are apart in one case.

    Attributes:
        height: of the images, pixels.
        width: of the images.
        batch_size: images.
        samples: noise samples of each.
        features: largest difference of the features, as a share of their largest absolute value.
        step: largest difference of a single decoder call from equal inputs, likewise.
        run: largest difference of the map after all steps of a run, in its own units (logits, metres, vector components).
        unit: what stands behind that number.
        flips: cells of the run's map whose label is another one; None for maps without classes.
        cells: cells of the run's map.
    """

    height: int
    width: int
    batch_size: int
    samples: int
    features: float
    step: float
    run: float
    unit: str
    flips: int | None
    cells: int

    def __str__(self) -> str:
        case = f"{self.batch_size} x {self.width}x{self.height}, {self.samples} sample{'s' * (self.samples > 1)}"
        flips = "" if self.flips is None else f", {self.flips} of {self.cells} labels flip"
        return (
            f"{case}: features differ by {self.features:.2g}, a decoder call by {self.step:.2g} of the largest value; "
            f"the map of a run by at most {self.run:.2g}{self.unit}{flips}"
        )


@torch.inference_mode()
def compare(model: MapModel, exported: Any) -> Iterator[Parity]:
    """Runs a model and its export side by side on smooth random images.

    Args:
        model: the model, on the CPU in float32.
        exported: the same as graphs, see `graph_model`.

    Yields:
        One comparison for each of `CASES`.
    """
    for number, (height, width, batch, samples) in enumerate(CASES):
        generators = [torch.Generator().manual_seed(1000 * number + index) for index in range(batch)]
        images = smooth_field((3,), (height, width), 3.0, generators)
        ours, theirs = model.encode_image(images), exported.encode_image(images)
        rows, columns = ours.shape[-2:]
        if not model.config.diffusion:
            samples = 1
        noise = torch.randn(batch, samples, model.codec.channels, rows, columns, generator=generators[0])
        step = max(_step_difference(model, exported, ours, noise, time) for time in TIMES)
        runs = []
        for one, features in ((model, ours), (exported, theirs)):
            generator = torch.Generator().manual_seed(7)
            runs.append(one.decode_map(features, noise=noise, generator=generator, **_plain_run(model, samples)).prediction)
        labels = [run.argmax(1) for run in runs]
        task = task_of(model)
        flips = int((labels[0] != labels[1]).sum()) if task.has_classes else None
        yield Parity(
            height, width, batch, samples, _share(ours, theirs), step,
            float((runs[0] - runs[1]).abs().max()), " m" if task.in_metres else "", flips, labels[0].numel(),
        )  # fmt: skip


def _plain_run(model: MapModel, samples: int) -> dict[str, Any]:
    """A run of whole steps of so many samples, whatever the configuration has as its default."""
    if not model.config.diffusion:
        return {"sampling": "one_pass"}
    kept = model.config.sampling if model.config.sampling != "field" and samples == 1 else "diffusion"
    return {"ensemble_size": samples, "sampling": kept, "refine": "all"}


def _step_difference(model: MapModel, exported: Any, features: Tensor, noise: Tensor, time: float) -> float:
    """Of one call: of what the head says, and of the signal that it stands for where that is no choice between labels."""
    answers = []
    for one in (model, exported):
        denoise = one.denoiser(features, [(time, 0.0)], noise.shape[1])
        answers.append(denoise(noise.flatten(0, 1), torch.full((1,), time)))
    (signal, prediction), (other_signal, other_prediction) = answers
    difference = _share(prediction, other_prediction)
    choice = task_of(model).has_classes and model.config.feedback != "mean"  # between labels, which rounding may decide
    return difference if choice else max(difference, _share(signal, other_signal))


def _share(ours: Tensor, theirs: Tensor) -> float:
    difference = float((ours - theirs).abs().max())
    return difference / max(float(ours.abs().max()), 1e-12) if difference == difference else float("inf")


def check(parities: list[Parity]) -> None:
    """Refuses an export that differs by more than rounding.

    Raises:
        ValueError: naming the case, the difference and what was expected.
    """
    for one in parities:
        for name, value in (("features", one.features), ("decoder call", one.step)):
            if not value <= TOLERANCE:
                raise ValueError(
                    f"the export is not the model: at {one.width}x{one.height}, {one.batch_size} images, its {name} differs by "
                    f"{value:.2g} of the largest value; expected at most {TOLERANCE:g}. Nothing was written"
                )
