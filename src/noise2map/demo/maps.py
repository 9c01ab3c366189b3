"""Content of the demo: a few frames at several step counts, the trajectory of a denoising, a room in three dimensions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from noise2map.diffusion import image_generator
from noise2map.geometry import normals_from_depth, point_cloud
from noise2map.inference.predictor import Predictor
from noise2map.metrics import (
    DepthScores,
    SegmentationScores,
    UncertaintyScores,
    absolute_relative_error,
    depth_is_wrong,
    depth_valid,
)
from noise2map.models.decoding import DecodingOptions, PredictionOptions
from noise2map.report.animation import DenoisingStep, denoising_steps
from noise2map.tasks.prediction import Prediction

# Stated by the models that state one, and shown where there are no numbers of steps to compare.
INTERVAL = 0.9


@dataclass
class Frame:
    """One frame with the truth and the predictions of one model.

    Attributes:
        id: Its id in the dataset.
        place: The map it was rendered in.
        image: ``(H, W, 3)`` uint8.
        truth: Class ids ``(H, W)`` uint8 with 255 unknown, or metres ``(H, W)`` float32 with 0 unknown.
        intrinsics: fx, fy, cx, cy in pixels.
        by_steps: Number of steps to prediction, with every kind of uncertainty.
    """

    id: str
    place: str
    image: np.ndarray
    truth: np.ndarray
    intrinsics: np.ndarray
    by_steps: dict[int, Prediction]


def varied_frames(dataset: Any, count: int, first: Sequence[str] = ()) -> list[int]:
    """Frames to show: those with most classes in view, from different maps before a second one of the same map.

    Args:
        dataset: A Freedoom dataset; its ``records`` tell map and classes.
        count: How many.
        first: Ids to begin with, where the dataset has them.

    Returns:
        Indices: of ``first``, then of the others in the order of the dataset.
    """
    places = {record["id"]: index for index, record in enumerate(dataset.records)}
    chosen = [places[one] for one in first if one in places][:count]
    best = sorted(range(len(dataset)), key=lambda index: (-len(dataset.records[index]["classes"]), index))
    rank: dict[int, int] = {}
    seen: dict[str, int] = {}
    for index in [*chosen, *(index for index in best if index not in chosen)]:
        place = dataset.records[index]["map"]
        rank[index] = seen.get(place, 0)
        seen[place] = rank[index] + 1
    others = sorted((index for index in best if index not in chosen), key=lambda index: rank[index])
    return chosen + sorted(others[: count - len(chosen)])


def predict_frames(
    predictor: Predictor, dataset: Any, indices: Sequence[int], step_counts: Sequence[int], decoding: DecodingOptions
) -> tuple[list[Frame], dict[int, float]]:
    """Predict frames at several step counts, from the same noise.

    Args:
        predictor: A segmentation or depth model.
        dataset: Raw samples with the truth for its task.
        indices: Which ones.
        step_counts: Numbers of decoder calls.
        decoding: The other choices.

    Returns:
        One frame per index, and the seconds an image took by number of steps. A single number of steps comes with the interval of
        `INTERVAL`, where the model states one.
    """
    samples = [dataset[index] for index in indices]
    frames = []
    for index, sample in zip(indices, samples):
        truth = sample["labels"] if predictor.has_classes else sample["depth_m"]
        image = np.asarray(sample["image"].convert("RGB"))
        place = str(dataset.records[index]["map"])
        frames.append(Frame(sample["id"], place, image, truth, sample["intrinsics"], {}))
    seconds = {}
    choices = {"interval": INTERVAL} if len(step_counts) == 1 and states_interval(predictor) else {}
    images, ids = [sample["image"] for sample in samples], [sample["id"] for sample in samples]
    for steps in step_counts:
        began = time.perf_counter()
        found = predictor(images, ids, decoding, num_inference_steps=steps, every_uncertainty=True, **choices)
        seconds[steps] = (time.perf_counter() - began) / len(images)
        for frame, prediction in zip(frames, found):
            frame.by_steps[steps] = prediction
    return frames, seconds


def states_interval(predictor: Predictor) -> bool:
    """Whether a model says where the truth is with a probability."""
    try:
        predictor.check_interval(PredictionOptions(interval=INTERVAL))
    except ValueError:
        return False
    return True


@dataclass
class StepScores:
    """Scores of one number of steps over some frames.

    Attributes:
        steps: Decoder calls.
        scores: Of the maps, by the names of :mod:`noise2map.metrics`.
        uncertainties: Kind to its metric, with everything seen.
        seconds: Time per image, preparation included.
    """

    steps: int
    scores: dict[str, float]
    uncertainties: dict[str, UncertaintyScores]
    seconds: float


def score_frames(predictor: Predictor, frames: Sequence[Frame], seconds: dict[int, float]) -> list[StepScores]:
    """Score frames against the truth, the uncertainty against the errors.

    Args:
        predictor: What predicted them.
        frames: From :func:`predict_frames`.
        seconds: Likewise.

    Returns:
        One entry per number of steps.
    """
    config = predictor.model.config
    segments = predictor.has_classes
    rows = []
    for steps, duration in seconds.items():
        maps: Any = SegmentationScores(config.num_labels) if segments else DepthScores(config.min_depth, config.max_depth)
        kinds: dict[str, UncertaintyScores] = {}
        for frame in frames:
            prediction = frame.by_steps[steps]
            if segments:
                found, truth = (torch.from_numpy(one.astype(np.int64))[None] for one in (prediction.labels, frame.truth))
                valid = truth != 255
                wrong = found != truth
                error = wrong
            else:
                found, truth = (torch.from_numpy(one)[None] for one in (prediction.depth_m, frame.truth))
                valid = depth_valid(truth, config.min_depth, config.max_depth)
                safe = torch.where(valid, truth, 1)
                wrong, error = depth_is_wrong(found, safe), absolute_relative_error(found, safe)
            maps.update(found, truth)
            for kind, values in prediction.uncertainties.items():
                metric = kinds.setdefault(kind, UncertaintyScores("binary" if segments else "continuous"))
                metric.update(torch.from_numpy(values)[None], error, wrong, valid)
        scores = {name: float(value) for name, value in maps.compute().items() if value.ndim == 0}
        rows.append(StepScores(steps, scores, kinds, duration))
    return rows


@torch.inference_mode()
def denoise_image(predictor: Predictor, image: Any, image_id: str, num_steps: int, seed: int = 0) -> list[DenoisingStep]:
    """The steps of one denoising, as arrays at the resolution of the map decoder.

    Args:
        predictor: A model.
        image: A Pillow image.
        image_id: Its id, which with the seed fixes the noise.
        num_steps: Decoder calls.
        seed: The seed.

    Returns:
        One entry per step; none for a model trained without diffusion.
    """
    if not predictor.model.config.diffusion:
        return []
    pixels = predictor.processor(images=image, return_tensors="pt")["pixel_values"].to(predictor.model.device)
    features = predictor.model.encode_image(pixels)
    generator = [image_generator(seed, image_id)]
    out = predictor.model.decode_map(
        features, num_inference_steps=num_steps, ensemble_size=1, generator=generator, output_steps=True
    )
    return denoising_steps(out.steps)


@dataclass
class PointCloudView:
    """A frame in three dimensions, from predicted depth.

    Attributes:
        points_m: ``(H, W, 3)`` metres in camera axes; NaN where the cloud has no point.
        normals: ``(H, W, 3)`` unit vectors.
        true_normals: The same from the true depth, zero where unknown.
        mean_angle_deg: Mean angle between the two, where both are known.
    """

    points_m: np.ndarray
    normals: np.ndarray
    true_normals: np.ndarray
    mean_angle_deg: float


def lift_frame(
    depth_m: np.ndarray, truth_m: np.ndarray, intrinsics: np.ndarray, leave_out: np.ndarray, far_m: float = 40.0
) -> PointCloudView:
    """Lift a depth map into a point cloud with normals.

    Args:
        depth_m: Predicted metres ``(H, W)``.
        truth_m: True metres ``(H, W)``, 0 where unknown.
        intrinsics: fx, fy, cx, cy in pixels.
        leave_out: ``(H, W)`` bool: pixels that are no surface, e.g. those of a predicted sky.
        far_m: Points beyond are left out.
    """
    camera = torch.from_numpy(np.asarray(intrinsics, np.float32))
    points = point_cloud(torch.from_numpy(depth_m), camera).numpy().copy()
    normals = normals_from_depth(torch.from_numpy(depth_m), camera).numpy()
    true_normals = normals_from_depth(torch.from_numpy(truth_m), camera).numpy()
    known = (np.linalg.norm(normals, axis=-1) > 0.5) & (np.linalg.norm(true_normals, axis=-1) > 0.5) & ~leave_out
    cosine = np.clip((normals * true_normals).sum(-1)[known], -1, 1)
    angle = float(np.degrees(np.arccos(cosine)).mean()) if known.any() else float("nan")
    points[leave_out | (depth_m > far_m) | (depth_m <= 0)] = np.nan
    return PointCloudView(points, normals, true_normals, angle)
