"""Drawn images of the rows of an evaluation: rows that are guided alike share their images."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from noise2map.generation.evaluation.measurements import FeatureModels, ImageFeatures, extract
from noise2map.generation.evaluation.references import ImageFiles
from noise2map.generation.evaluation.settings import EQUAL_COST
from noise2map.generation.sampling import SamplingOptions, check_drawing, draw_images, folder_name, image_settings
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.progress import progress_bar

Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class RowRequest:
    """Images that a row of a table asks for.

    Attributes:
        name: Of the row.
        guidance: What guides its images.
        seeds: Of its images.
        steps: Sampling steps.
    """

    name: str
    guidance: GuidanceConfig
    seeds: Sequence[int]
    steps: int


@dataclass(frozen=True)
class DrawnRow(RowRequest):
    """Images of all rows that are guided alike: as many as the largest of them asks for.

    Attributes:
        folder: Where they are, with the record of each.
    """

    folder: OutputFolder

    @property
    def root(self) -> Path:
        """The folder of the images."""
        return self.folder.root

    def median_seconds(self, count: int) -> float:
        """Time of an image: the median of the first so many."""
        return float(torch.tensor([self.folder.done[str(seed)]["seconds"] for seed in self.seeds[:count]]).median())

    def measure(self, models: FeatureModels, *, batch_size: int, cache: Path) -> ImageFeatures:
        """Features of all its images, see `extract`."""
        files = ImageFiles([self.root / self.folder.done[str(seed)]["files"]["image"] for seed in self.seeds])
        ids = [str(seed) for seed in self.seeds]
        return extract(files, ids, models, batch_size=batch_size, cache=cache, title=f"measure {self.name}")


def draw_rows(
    pipe: DepthGuidedPipeline, requests: Mapping[Place, RowRequest], out: Path, sampling: SamplingOptions
) -> dict[Place, DrawnRow]:
    """Draw the images of rows that are not there yet.

    Args:
        pipe: The generator, with the parts that guidance needs.
        requests: Place of a row to what it asks for.
        out: Folder that gets a folder for each guidance.
        sampling: How images are drawn; the number of steps is each row's own.

    Returns:
        Place of a row to its images; rows that are guided alike share them.

    Raises:
        OSError: If something cannot be written; `BlockingIOError` if another process draws these images.
        ValueError: If a row cannot be drawn, before any is, or a gradient is not finite.
    """
    keys: dict[Place, str] = {}
    merged: dict[str, RowRequest] = {}
    last = int(pipe.scheduler.config.num_train_timesteps)
    for place, request in requests.items():
        if request.name == EQUAL_COST and request.steps > last:
            raise ValueError(
                f"--equal-cost asks for {request.steps} unguided steps, but the generator has {last}; expected fewer --steps"
            )
        how = replace(sampling, num_inference_steps=request.steps)
        check_drawing(pipe, request.seeds, how, request.guidance)
        key = keys[place] = folder_name(image_settings(pipe, how, request.guidance), request.guidance)
        before = merged.setdefault(key, request)
        merged[key] = replace(before, seeds=max(before.seeds, request.seeds, key=len))
    drawn = {}
    with progress_bar(total=sum(len(one.seeds) for one in merged.values()), unit="image") as bar:
        for key, one in merged.items():
            bar.set_description(one.name)
            how = replace(sampling, num_inference_steps=one.steps)
            folder = draw_images(pipe, one.seeds, out, how, one.guidance, on_images=bar.update)
            drawn[key] = DrawnRow(one.name, one.guidance, one.seeds, one.steps, folder)
    return {place: drawn[key] for place, key in keys.items()}
