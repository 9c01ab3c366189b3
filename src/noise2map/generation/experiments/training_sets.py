"""Training sets of the experiment: real images, and generated ones labelled by the generator's own features."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from noise2map.data.center_crop import CenterCrops
from noise2map.data.subsets import Subset
from noise2map.generation.depth_reading import depth_probe, probe_name
from noise2map.generation.evaluation.measurements import stack_images
from noise2map.generation.evaluation.references import ImageFiles
from noise2map.generation.image_files import seed_name
from noise2map.generation.sampling import UNGUIDED, SamplingOptions, draw_images, option_settings
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig, PriorLoss
from noise2map.metrics import depth_disagreement
from noise2map.runs.files import content_checksum, write_bytes
from noise2map.runs.progress import progress_bar

ARMS = {
    "real": "real images, true depth",
    "real-predicted": "real images, predicted depth",
    "unguided": "unguided samples, predicted depth",
    "guided": "guided samples, predicted depth",
    "filtered-unguided": "unguided samples whose two readings agree best, predicted depth",
    "filtered": "guided samples whose two readings agree best, predicted depth",
}

FILTERED = ("filtered-unguided", "filtered")

UNGUIDED_ARMS = ("unguided", "filtered-unguided")


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Options of the experiment; see ``noise2map experiment depth-from-generated --help``.

    Attributes:
        model: The generator, by folder or hub id.
        real: Real images with depth to train on: a rendered Freedoom split, or `samples`.
        test: Real images with depth to score on: of other places.
        out: Folder of samples, runs and results.
        depth_predictor: Depth predictor, if the generator's folder has none.
        depth_prior: Depth prior, if the generator's folder has none.
        arms: Which training sets.
        images: Number of images of each.
        trainings: Number of trainings on each.
        iterations: Optimiser steps of a training.
        recipe: Of the depth model that is trained, by name or file; its data are not used.
        keep: Share of the samples that a filter keeps; it draws more of them, so that all sets are equally large.
        sampling: How images are drawn.
        guidance: Of the guided samples; its prior loss is left out without a prior.
        sampler: `"ddim"`, `"ddpm"` or `"default"`, the generator's.
        timestep_spacing: `"trailing"`, `"leading"`, `"linspace"` or `"default"`, the generator's.
        probe_timestep: Noise at which depth is read.
        limit: At most this many test images, 0 for all.
        device: By name.
        samples: Folder of generated images, which are taken from there or added; `out/samples` by default.
    """

    model: str
    real: str
    test: str
    out: Path
    depth_predictor: str | None = None
    depth_prior: str | None = None
    arms: Sequence[str] = tuple(ARMS)
    images: int = 1000
    trainings: int = 3
    iterations: int = 2000
    recipe: str = "freedoom-depth-mini"
    keep: float = 0.5
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    guidance: GuidanceConfig = field(default_factory=lambda: GuidanceConfig.from_scales(40.0, 40.0))
    sampler: str = "ddim"
    timestep_spacing: str = "default"
    probe_timestep: int = 50
    limit: int = 0
    device: str = "auto"
    samples: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the results, as JSON values: what `OutputFolder` compares."""
        return option_settings("experiment depth-from-generated", self)


@dataclass
class TrainingSet:
    """Images with depth, as raw samples.

    Attributes:
        images: `(N, 3, H, W)` uint8.
        depth_m: Metres `(N, H, W)`, 0 where unknown.
    """

    images: Tensor
    depth_m: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: `image` (RGB), `depth_m` `(H, W)` and `id`."""
        image = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())
        return {"image": image, "depth_m": self.depth_m[index].numpy(), "id": str(index)}


def guidance_of(options: ExperimentOptions, pipe: DepthGuidedPipeline) -> GuidanceConfig:
    """Guidance of the guided samples: without a prior there is no prior loss."""
    losses = [one for one in options.guidance.losses if pipe.depth_prior is not None or not isinstance(one, PriorLoss)]
    return replace(options.guidance, losses=losses)


def real_images(dataset: Any, limit: int, size: int) -> TrainingSet:
    """Center crops of real samples, evenly spaced, with their true depth."""
    crops = CenterCrops(Subset.evenly_spaced(dataset, limit or None), size, ("image", "depth"))
    samples = [crops[index] for index in range(len(crops))]
    images = torch.from_numpy(np.stack([np.asarray(one["image"]) for one in samples])).permute(0, 3, 1, 2).contiguous()
    return TrainingSet(images, torch.from_numpy(np.stack([one["depth_m"] for one in samples])))


def training_set(options: ExperimentOptions, arm: str, pipe: DepthGuidedPipeline, real: Any, size: int) -> TrainingSet:
    """The images of an arm with their labels.

    Args:
        options: What to do.
        arm: One of `ARMS`.
        pipe: The generator with its predictor, and its prior if there is one.
        real: Real samples with depth; None if the arm is generated.
        size: Side of the images, pixels.
    """
    if arm in ("real", "real-predicted"):
        found = real_images(real, options.images, size)
        if arm == "real":
            return TrainingSet(found.images, _inside(found.depth_m, pipe))
        strong, _ = read_labels(options, pipe, found.images, [f"real-{index}" for index in range(len(found))])
        return _labelled(found.images, strong, pipe)
    guidance = UNGUIDED if arm in UNGUIDED_ARMS else guidance_of(options, pipe)
    count = -(-options.images * 1000 // round(options.keep * 1000)) if arm in FILTERED else options.images
    with progress_bar(total=count, desc=f"draw {arm}", unit="image") as bar:
        out = options.samples or options.out / "samples"
        folder = draw_images(pipe, range(count), out, options.sampling, guidance, on_images=bar.update)
    images = stack_images(ImageFiles([folder.root / f"{seed_name(seed)}.png" for seed in range(count)]))
    strong, weak = read_labels(options, pipe, images, [str(seed) for seed in range(count)])
    if arm in FILTERED:
        chosen = depth_disagreement(strong, weak).argsort(stable=True)[: options.images].sort().values
        images, strong = images[chosen], strong[chosen]
    return _labelled(images, strong, pipe)


def _labelled(images: Tensor, strong: Tensor, pipe: DepthGuidedPipeline) -> TrainingSet:
    return TrainingSet(images, pipe.depth_predictor.depth_range.decode(strong.clamp(-1, 1)))


def _inside(depth_m: Tensor, pipe: DepthGuidedPipeline) -> Tensor:
    """Depth outside of the predictor's range is not known to it: 0."""
    codec = pipe.depth_predictor.depth_range.codec
    return torch.where((depth_m > codec.min_depth) & (depth_m < codec.max_depth), depth_m, 0)


def read_labels(options: ExperimentOptions, pipe: DepthGuidedPipeline, images: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Strong and weak depth signal `(N, 1, H, W)` of images, kept by their content."""
    name = content_checksum([f"{probe_name(pipe, options.probe_timestep)} {list(ids)}", images.numpy().tobytes()], 32)
    path = options.out / "labels" / f"{name}.safetensors"
    if not path.is_file():
        probe = depth_probe(pipe, options.probe_timestep)
        parts = []
        for start in range(0, len(images), options.sampling.batch_size):
            part = slice(start, start + options.sampling.batch_size)
            parts.append([signal.float().cpu() for signal in probe(images[part], ids[part])])
        strong, weak = (torch.cat(signals) for signals in zip(*parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"strong": strong.contiguous(), "weak": weak.contiguous()}))
    found = load_file(path)
    return found["strong"], found["weak"]
