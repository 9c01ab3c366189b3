"""Do maps of a walk agree from frame to frame? Fresh noise, one field of noise, and warm starts, at equal numbers of decoder calls.

    noise2map data freedoom --split test --walks 9 --frames 10 --supersample 4 --out walks
    python benchmarks/video.py --data walks --frames 5 --out results/video.csv

The map of a frame is compared with that of the frame before along the true flow, on pixels that were visible before: the share
whose class changes, the mean difference of log depth after the depth was moved with the camera, or the mean angle between normals
after they were turned with it, in degrees. The true maps have a score of their own: pixels at edges, depth of which a file keeps
centimetres, normals of which it keeps 8 bits. ``freedoom-completion-tiny`` sees a cover at one place of all frames. A warm start
takes the map before as it lies there, or ``moved`` along the true flow. Intervals (95 %) resample walks; ``change`` is the
difference from fresh noise at the same number of calls.
"""

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise2map.data.freedoom.dataset import open_rendered
from noise2map.data.freedoom.motion import Motion, pixel_rays
from noise2map.data.transforms.covering import cover
from noise2map.demo.completion import covered_middle
from noise2map.diffusion.ensemble import unfold
from noise2map.inference.predictor import Predictor
from noise2map.metrics.normals import angular_error, normals_valid
from noise2map.metrics.temporal.agreement import class_disagreement, depth_disagreement, normals_disagreement
from noise2map.models.decoding import PredictionOptions
from noise2map.models.denoising.run import WarmStart
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of

MODELS = (
    "freedoom-segmentation-tiny",
    "freedoom-completion-tiny",
    "freedoom-depth-laplace-tiny",
    "freedoom-normals-tiny",
)
COVERED = ("freedoom-completion-tiny",)
LEVELS = (0.5, 0.8)
STEPS = (1, 3)
RESAMPLES = 2000
SCORES = {"segmentation": ("class_change", "mIoU"), "depth": ("log_depth", "abs_rel"), "normals": ("degrees", "mean_angle")}


@dataclass
class Walks:
    """Frames of walks, ``frames[walk][step]``."""

    samples: list[list[dict[str, Any]]]
    records: list[list[dict[str, Any]]]
    flows: list[list[Any]]

    @classmethod
    def read(cls, data: str, limit: int, frames: int) -> "Walks":
        """The first frames of the first walks of a folder; all for 0."""
        dataset = open_rendered(data, task="all")
        count = json.loads((Path(data) / "dataset.json").read_text())["walk_frames"]
        walks = [range(first, first + (frames or count)) for first in range(0, len(dataset) - count + 1, count)][: limit or None]
        records = [[dataset.records[index] for index in walk] for walk in walks]
        flows = []
        for walk in records:
            flows.append([None])
            for record in walk[1:]:
                with np.load(Path(data) / "flow" / f"{record['index']:06d}.npz") as flow:
                    flows[-1].append((torch.from_numpy(flow["offset_px"]), torch.from_numpy(flow["visible"])))
        return cls([[dataset[index] for index in walk] for walk in walks], records, flows)

    def disagreement(self, walk: int, step: int, before: Tensor, now: Tensor, task: str) -> tuple[float, int]:
        """Sum and count of differences of two maps."""
        offset, visible = self.flows[walk][step]
        known = visible & known_pixels(self.truth(walk, step, task), task)
        if task == "segmentation":
            return class_disagreement(before, now, offset, known)
        old, new = self.records[walk][step - 1], self.records[walk][step]
        poses = (np.array(old["position_m"]), old["yaw_deg"], np.array(new["position_m"]), new["yaw_deg"])
        motion = Motion.between(*poses)
        if task == "normals":
            turned = torch.from_numpy(motion.turn_normals(before.double().numpy().transpose(1, 2, 0)))
            return normals_disagreement(turned, now.double().movedim(0, -1), offset, known)
        rays = pixel_rays(before.shape, np.array(new["intrinsics"]))
        moved = torch.from_numpy(motion.move_depth(before.double().numpy(), rays))
        return depth_disagreement(torch.where(before > 0, moved, 0), now.double(), offset, known)

    def truth(self, walk: int, step: int, task: str) -> Tensor:
        """The true map: ``(H, W)``, of normals ``(3, H, W)``."""
        sample = self.samples[walk][step]
        if task == "normals":
            return torch.from_numpy(sample["normals"].transpose(2, 0, 1).copy())
        if task == "segmentation":
            return torch.from_numpy(sample["labels"].astype(np.int64))
        return torch.from_numpy(np.where(sample["valid"], sample["depth_m"], 0).astype(np.float32))


def known_pixels(truth: Tensor, task: str) -> Tensor:
    """Where the true map is known, ``(H, W)`` bool."""
    if task == "normals":
        return normals_valid(truth[None])[0]
    return truth != 255 if task == "segmentation" else truth > 0


def errors(prediction: Tensor, truth: Tensor, task: str, classes: int) -> np.ndarray:
    """Sums that a score is made of: a confusion matrix, or errors (relative, or angles in degrees) and their number."""
    known = known_pixels(truth, task)
    if task == "segmentation":
        counts = torch.bincount(truth[known] * classes + prediction[known], minlength=classes**2)
        return counts.view(classes, classes).double().numpy()
    if task == "normals":
        error = angular_error(prediction[None], truth[None])[0]
    else:
        error = (prediction - truth).abs() / truth.clamp(min=1e-6)
    return np.array([float(error[known].sum()), float(known.sum())])


def accuracy(sums: np.ndarray) -> float:
    """mIoU of a confusion matrix in percent, AbsRel, or the mean angle."""
    if sums.ndim == 1:
        return float(sums[0] / sums[1])
    union = sums.sum(0) + sums.sum(1) - sums.diagonal()
    return float(100 * np.mean(sums.diagonal()[union > 0] / union[union > 0]))


def encoded(predictor: Predictor, walks: Walks, covered: bool) -> list[Tensor]:
    """Features of the frames of a step, all walks together."""
    found = []
    for step in range(len(walks.samples[0])):
        images = [walk[step]["image"] for walk in walks.samples]
        if covered:
            hidden = covered_middle(images[0].height, images[0].width)
            images = [cover({"image": image}, hidden)["image"] for image in images]
        width, height = predictor.processed_size(*images[0].size)
        inputs = predictor.processor(
            images=images, size={"height": height, "width": width}, do_resize=True, keep_aspect_ratio=False, return_tensors="pt"
        )
        found.append(predictor.model.encode_image(inputs["pixel_values"]))
    return found


def decoded(
    predictor: Predictor, features: list[Tensor], steps: int, arm: str, level: float | None, flows: list[Any] | None = None
) -> list[list[Tensor]]:
    """Maps ``[step][walk]``; with true flows ``[walk][step]`` a warm start begins from the map moved along them."""
    model, task = predictor.model, task_of(predictor.model)
    options = PredictionOptions(num_inference_steps=steps if model.config.diffusion else None).resolved(model.config)
    found, before = [], None
    for step, features_of_step in enumerate(features):
        ids = [f"walk {walk}" + (f" frame {step}" if arm == "fresh noise" else "") for walk in range(len(features_of_step))]
        warm = None if level is None or before is None else WarmStart(before, level)
        if warm is not None and flows is not None:
            warm = warm.moved(*(torch.stack([walk[step][part] for walk in flows]) for part in (0, 1)))
        out = options.decode(model, features_of_step, ids, warm_start=warm, output_steps=True)
        before = unfold(out.steps[-1].x0, options.ensemble_size)
        size = (features_of_step.shape[-2] * 4, features_of_step.shape[-1] * 4)
        out.steps = None
        found.append([one.clone() for one in task.maps(model.at_pixels(out, size), predictor.processor, [size] * len(ids))])
    return found


def scored(walks: Walks, maps: Any, task: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Temporal sums ``(walks, 2)`` and sums of errors ``(walks, ...)``."""
    temporal, wrong = [], []
    for walk in range(len(walks.samples)):
        steps = range(len(walks.samples[walk]))
        pairs = [walks.disagreement(walk, step, maps[step - 1][walk], maps[step][walk], task) for step in steps[1:]]
        temporal.append(np.sum(pairs, 0))
        wrong.append(np.sum([errors(maps[step][walk], walks.truth(walk, step, task), task, classes) for step in steps], 0))
    return np.array(temporal, float), np.array(wrong)


def interval(values: list[float]) -> str:
    """95 % of resamples."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"[{low:.4f}, {high:.4f}]"


@torch.inference_mode()
def run(name: str, walks: Walks, seed: int = 0) -> list[dict[str, Any]]:
    """One row for each arm."""
    predictor = Predictor.from_pretrained(name, device="cpu")
    task, classes = predictor.task, predictor.model.config.num_labels if predictor.has_classes else 0
    temporal_score, score = SCORES[task]
    truth = [[walks.truth(walk, step, task) for walk in range(len(walks.samples))] for step in range(len(walks.samples[0]))]
    features = encoded(predictor, walks, name in COVERED)
    arms: dict[tuple[int, str], Any] = {(0, "truth"): truth}
    if not predictor.model.config.diffusion:
        arms[1, "no noise"] = decoded(predictor, features, 1, "no noise", None)
    else:
        for steps in STEPS:
            arms[steps, "fresh noise"] = decoded(predictor, features, steps, "fresh noise", None)
            arms[steps, "one field"] = decoded(predictor, features, steps, "one field", None)
            for level in LEVELS:
                arms[steps, f"warm start {level}"] = decoded(predictor, features, steps, "one field", level)
                moved = decoded(predictor, features, steps, "one field", level, walks.flows)
                arms[steps, f"warm start {level}, moved"] = moved
            print(name, steps, flush=True)
    sums = {key: scored(walks, maps, task, classes) for key, maps in arms.items()}
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(walks.samples), len(walks.samples)) for _ in range(RESAMPLES)]

    def temporal(key: Any, rows: Any = slice(None)) -> float:
        total = sums[key][0][rows].sum(0)
        return float(total[0] / total[1])

    def right(key: Any, rows: Any = slice(None)) -> float:
        return accuracy(sums[key][1][rows].sum(0))

    found = []
    for key in arms:
        steps, arm = key
        row = {"model": name, "calls": steps, "arm": arm, "covered": name in COVERED, "walks": len(walks.samples)}
        row |= {"frames": len(walks.samples[0]), "temporal_score": temporal_score}
        row |= {"temporal": f"{temporal(key):.4f}", "temporal_95": interval([temporal(key, draw) for draw in draws])}
        row |= {"score": score, "accuracy": f"{right(key):.4f}"}
        row["accuracy_95"] = interval([right(key, draw) for draw in draws])
        base = (steps, "fresh noise")
        if base in arms and key != base:
            row |= {"change": f"{temporal(key) - temporal(base):.4f}"}
            row["change_95"] = interval([temporal(key, draw) - temporal(base, draw) for draw in draws])
            row |= {"accuracy_change": f"{right(key) - right(base):.4f}"}
            row["accuracy_change_95"] = interval([right(key, draw) - right(base, draw) for draw in draws])
        found.append(row)
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=0, help="Walks.")
    parser.add_argument("--frames", type=int, default=0, help="Of each walk.")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    walks = Walks.read(arguments.data, arguments.limit, arguments.frames)
    for name in arguments.models:
        rows = run(name, walks)
        print(text_table(rows))
        if arguments.out:
            facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
            merge_rows(arguments.out, [row | facts for row in rows], ("model", "calls", "arm"))


if __name__ == "__main__":
    main()
