"""What the demo shows: a few frames at several step counts, the course of a denoising, a room in three dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from noise2map.diffusion import image_generator
from noise2map.geometry import normals_from_depth, point_cloud
from noise2map.inference.predictor import Dials, Prediction, Predictor
from noise2map.report.animation import Moment, moments


@dataclass
class Frame:
    """One frame with the truth and the predictions of one model.

    Attributes:
        id: Its id in the data set.
        place: The map it was rendered in.
        image: ``(H, W, 3)`` uint8.
        truth: Class ids ``(H, W)`` uint8 with 255 unknown, or metres ``(H, W)`` float32 with 0 unknown.
        intrinsics: fx, fy, cx, cy in pixels.
        by_steps: Number of steps to prediction.
    """

    id: str
    place: str
    image: np.ndarray
    truth: np.ndarray
    intrinsics: np.ndarray
    by_steps: dict[int, Prediction]


def varied_frames(dataset: Any, count: int) -> list[int]:
    """Frames to show: those with most classes in view, from different maps before a second one of the same map.

    Args:
        dataset: A Freedoom data set; its ``records`` tell map and classes.
        count: How many.

    Returns:
        Indices in the order of the data set.
    """
    best = sorted(range(len(dataset)), key=lambda index: (-len(dataset.records[index]["classes"]), index))
    rank: dict[int, int] = {}
    seen: dict[str, int] = {}
    for index in best:
        place = dataset.records[index]["map"]
        rank[index] = seen.get(place, 0)
        seen[place] = rank[index] + 1
    return sorted(sorted(best, key=lambda index: rank[index])[:count])


def predict_frames(
    predictor: Predictor, dataset: Any, indices: Sequence[int], step_counts: Sequence[int], dials: Dials
) -> list[Frame]:
    """Predict frames at several step counts, from the same noise.

    Args:
        predictor: A segmentation or depth model.
        dataset: Raw samples with the truth for its task.
        indices: Which ones.
        step_counts: Numbers of decoder calls.
        dials: The other choices.

    Returns:
        One frame per index.
    """
    samples = [dataset[index] for index in indices]
    frames = []
    for index, sample in zip(indices, samples):
        truth = sample["labels"] if predictor.task == "segmentation" else sample["depth_m"]
        image = np.asarray(sample["image"].convert("RGB"))
        place = str(dataset.records[index]["map"])
        frames.append(Frame(sample["id"], place, image, truth, sample["intrinsics"], {}))
    for steps in step_counts:
        found = predictor([s["image"] for s in samples], [s["id"] for s in samples], dials, num_inference_steps=steps)
        for frame, prediction in zip(frames, found):
            frame.by_steps[steps] = prediction
    return frames


@torch.inference_mode()
def denoising_moments(predictor: Predictor, image: Any, image_id: str, num_steps: int, seed: int = 0) -> list[Moment]:
    """The steps of one denoising, as arrays at the resolution of the map decoder.

    Args:
        predictor: A model.
        image: A Pillow image.
        image_id: Its id, which with the seed fixes the noise.
        num_steps: Decoder calls.
        seed: The seed.

    Returns:
        One moment per step; none for a model trained without diffusion.
    """
    if not predictor.model.config.diffusion:
        return []
    pixels = predictor.processor(images=image, return_tensors="pt")["pixel_values"].to(predictor.model.device)
    features = predictor.model.encode_image(pixels)
    generator = [image_generator(seed, image_id)]
    out = predictor.model.decode_map(
        features, num_inference_steps=num_steps, ensemble_size=1, generator=generator, output_steps=True
    )
    return moments(out.steps)


@dataclass
class Room:
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


def build_room(
    depth_m: np.ndarray, truth_m: np.ndarray, intrinsics: np.ndarray, leave_out: np.ndarray, far_m: float = 40.0
) -> Room:
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
    return Room(points, normals, true_normals, angle)
