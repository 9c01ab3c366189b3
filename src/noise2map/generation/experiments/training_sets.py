"""Training sets of the experiment: real images, and generated ones labelled by the generator's own features."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from noise2map.data.center_crop import SquareCrops
from noise2map.data.subsets import Subset
from noise2map.generation.depth_reading import depth_probe, probe_name
from noise2map.generation.evaluation.measurements import stack_pictures
from noise2map.generation.evaluation.references import PictureFiles
from noise2map.generation.sampling import GuidanceSetting, SamplingPlan, draw_images, prior_name
from noise2map.guidance import DepthGuidedPipeline
from noise2map.metrics import depth_disagreement
from noise2map.runs.files import write_bytes
from noise2map.zoo import label_of

ARMS = {
    "real": "real images, true depth",
    "real-predicted": "real images, predicted depth",
    "unguided": "unguided samples, predicted depth",
    "guided": "guided samples, predicted depth",
    "filtered": "guided samples whose two readings agree best, predicted depth",
}


@dataclass
class ExperimentJob:
    """What to do; see ``noise2map experiment depth-from-generated --help``.

    Attributes:
        model: The generator, by folder or hub id.
        real: Real images with depth to train on: a rendered Freedoom split, or `samples`.
        test: Real images with depth to score on: of other places.
        out: Folder of samples, runs and results.
        predictor: Depth predictor, if the generator's folder has none.
        prior: Depth prior.
        arms: Which training sets.
        images: Number of images of each.
        seeds: Number of trainings on each.
        iterations: Optimiser steps of a training.
        keep: Share of the guided samples that the filter keeps; it draws more of them, so that all sets are equally large.
        consistency_scale: Of the guided samples.
        prior_scale: Of the guided samples; 0 without a prior.
        plan: What sampling shares.
        scheduler: `"ddim"`, `"ddpm"` or `"own"`, the generator's.
        probe_timestep: Noise at which depth is read.
        test_limit: At most this many test images, 0 for all.
        batch_size: Images at a time, in sampling.
        device: By name.
        samples: Folder of generated images, which are taken from there or added; `out/samples` by default.
    """

    model: str
    real: str
    test: str
    out: Path
    predictor: str | None = None
    prior: str | None = None
    arms: Sequence[str] = tuple(ARMS)
    images: int = 1000
    seeds: int = 3
    iterations: int = 2000
    keep: float = 0.5
    consistency_scale: float = 40.0
    prior_scale: float = 40.0
    plan: SamplingPlan = field(default_factory=SamplingPlan)
    scheduler: str = "ddim"
    probe_timestep: int = 50
    test_limit: int = 0
    batch_size: int = 8
    device: str = "auto"
    samples: Path | None = None


@dataclass
class TrainingSet:
    """Images with depth.

    Attributes:
        images: `(N, 3, H, W)` uint8.
        signal: Depth signal `(N, 1, H, W)`.
        mask: Where it is known.
    """

    images: Tensor
    signal: Tensor
    mask: Tensor


def prior_scale_of(job: ExperimentJob, pipe: DepthGuidedPipeline) -> float:
    """Scale of prior guidance; 0 without a prior."""
    return 0.0 if pipe.depth_prior is None else job.prior_scale


def real_images(dataset: Any, limit: int, size: int) -> tuple[Tensor, Tensor]:
    """Middle squares of real samples, spread evenly: images uint8 and depth in metres, 0 unknown."""
    squares = SquareCrops(Subset.evenly_spaced(dataset, limit or None), size, ("image", "depth"))
    samples = [squares[index] for index in range(len(squares))]
    images = torch.from_numpy(np.stack([np.asarray(one["image"]) for one in samples])).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(np.stack([one["depth_m"] for one in samples]))


def training_set(
    job: ExperimentJob, arm: str, pipe: DepthGuidedPipeline, real: Any, size: int, progress: bool = True
) -> TrainingSet:
    """The images of an arm with their labels.

    Args:
        job: What to do.
        arm: One of `ARMS`.
        pipe: The generator with its predictor, and its prior if there is one.
        real: Real samples with depth; None if the arm is generated.
        size: Side of the images, pixels.
        progress: Show a progress bar.
    """
    if arm in ("real", "real-predicted"):
        images, depth_m = real_images(real, job.images, size)
        if arm == "real":
            return TrainingSet(images, *pipe.depth_predictor.encode_depth(_inside(depth_m, pipe)))
        strong, _ = read_labels(job, pipe, images, [f"real-{index}" for index in range(len(images))])
        return _labelled(images, strong)
    guided = arm != "unguided"
    scales = (job.consistency_scale, prior_scale_of(job, pipe)) if guided else (0.0, 0.0)
    count = -(-job.images * 1000 // round(job.keep * 1000)) if arm == "filtered" else job.images
    setting = GuidanceSetting(arm, *scales, prior_name(pipe.depth_prior))
    with tqdm(total=count, desc=f"draw {arm}", unit="image", disable=None if progress else True) as bar:
        folder = draw_images(
            pipe,
            setting,
            range(count),
            job.samples or job.out / "samples",
            job.plan,
            batch_size=job.batch_size,
            generator_name=label_of(job.model),
            on_images=bar.update,
        )
    files = PictureFiles([folder.root / f"{seed:06d}.png" for seed in range(count)])
    images = stack_pictures(files, range(count))
    strong, weak = read_labels(job, pipe, images, [str(seed) for seed in range(count)])
    if arm == "filtered":
        chosen = depth_disagreement(strong, weak).argsort(stable=True)[: job.images].sort().values
        images, strong = images[chosen], strong[chosen]
    return _labelled(images, strong)


def _labelled(images: Tensor, strong: Tensor) -> TrainingSet:
    signal = strong.clamp(-1, 1)
    return TrainingSet(images, signal, torch.ones_like(signal, dtype=torch.bool))


def _inside(depth_m: Tensor, pipe: DepthGuidedPipeline) -> Tensor:
    """Depth outside of the predictor's range is not known to it: 0."""
    codec = pipe.depth_predictor.depth_range.codec
    return torch.where((depth_m > codec.min_depth) & (depth_m < codec.max_depth), depth_m, 0)


def read_labels(job: ExperimentJob, pipe: DepthGuidedPipeline, images: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Strong and weak depth signal `(N, 1, H, W)` of images, kept by their content."""
    digest = hashlib.sha256(f"{probe_name(pipe, job.probe_timestep)} {list(ids)}".encode())
    digest.update(images.numpy().tobytes())
    path = job.out / "labels" / f"{digest.hexdigest()[:32]}.safetensors"
    if not path.is_file():
        probe = depth_probe(pipe, job.probe_timestep)
        parts = []
        for start in range(0, len(images), job.batch_size):
            part = slice(start, start + job.batch_size)
            parts.append([signal.float().cpu() for signal in probe(images[part], ids[part])])
        strong, weak = (torch.cat(signals) for signals in zip(*parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"strong": strong.contiguous(), "weak": weak.contiguous()}))
    found = load_file(path)
    return found["strong"], found["weak"]
