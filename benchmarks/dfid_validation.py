"""Does dFID see geometry, and nothing else? FID and dFID of corrupted real frames, where we know what was changed.

Freedoom test and validation frames are dealt into two halves. One is the reference; the other is compared with it as it is (the
floor that the number of frames gives), with its colors changed (geometry untouched), and with its geometry broken (colors
untouched). An instrument for geometry should answer to the second more than FID does, relative to the first.

    python benchmarks/dfid_validation.py --root data/freedoom --out results/dfid_validation.csv

Interrupted, it goes on where it was (measurements are kept in --cache by content). About a quarter of an hour on one core.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from noise2map.data import FreedoomDataset
from noise2map.generation.evaluation.feature_extractors import DEFAULT_EXTRACTOR, make_extractor
from noise2map.generation.evaluation.measurements import FeatureModels, ImageFeatures, extract
from noise2map.inference.depth_models import DEFAULT_DEPTH_MODEL, load_depth_model
from noise2map.metrics import centered_interval, feature_distance, resampled_distances
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

Corruption = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


# ---- corruptions: (image, another image, rng) -> image, all (H, W, 3) float64 in 0..255 -----------------------------------------


def grey(image, other, rng):
    return np.repeat(image @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)


def tint(image, other, rng):
    return image * np.array([1.25, 1.0, 0.7])


def channels(image, other, rng):
    return image[..., [1, 2, 0]]


def gamma(image, other, rng):
    return 255 * (image / 255) ** 1.6


def contrast(image, other, rng):
    return image.mean() + 0.5 * (image - image.mean())


def grain(image, other, rng):
    return image + rng.normal(0, 10, image.shape)


def mirror(image, other, rng):
    return image[:, ::-1]


def upside_down(image, other, rng):
    return image[::-1]


def halves(image, other, rng):
    return np.concatenate([image[:, : image.shape[1] // 2], other[:, image.shape[1] // 2 :]], axis=1)


def patch(image, other, rng):
    height, width = image.shape[:2]
    top, left = rng.integers(0, height - height // 2), rng.integers(0, width - width // 2)
    result = image.copy()
    result[top : top + height // 2, left : left + width // 2] = other[top : top + height // 2, left : left + width // 2]
    return result


def warp(image, other, rng):
    return move(image, *(smooth_field(image.shape[:2], rng) * 8))


def ripple(image, other, rng):
    height, width = image.shape[:2]
    shift = 5 * np.sin(np.arange(height) / height * 6 * np.pi + rng.uniform(0, 2 * np.pi))
    return move(image, np.zeros((height, width)), np.repeat(shift[:, None], width, axis=1))


def tiles(image, other, rng):
    height, width = image.shape[0] // 3, image.shape[1] // 4
    parts = [image[i * height : (i + 1) * height, j * width : (j + 1) * width] for i in range(3) for j in range(4)]
    parts = [parts[index] for index in rng.permutation(12)]
    return np.concatenate([np.concatenate(parts[4 * i : 4 * i + 4], axis=1) for i in range(3)], axis=0)


def smooth_field(size, rng):
    """Two random fields (2, H, W) of about unit deviation that change over a fifth of the picture."""
    coarse = rng.normal(size=(2, 6, 8))
    planes = [np.asarray(Image.fromarray(one.astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC)) for one in coarse]
    return np.stack(planes).astype(np.float64)


def move(image, down, right):
    """Bilinear look-up at displaced pixels, clamped at the border."""
    height, width = image.shape[:2]
    y = np.clip(np.arange(height)[:, None] + down, 0, height - 1.001)
    x = np.clip(np.arange(width)[None] + right, 0, width - 1.001)
    i, j = y.astype(int), x.astype(int)
    v, u = (y - i)[..., None], (x - j)[..., None]
    return (1 - v) * ((1 - u) * image[i, j] + u * image[i, j + 1]) + v * ((1 - u) * image[i + 1, j] + u * image[i + 1, j + 1])


CORRUPTIONS: dict[str, tuple[str, Corruption]] = {
    "none": ("control", lambda image, other, rng: image),
    "mirror": ("control", mirror),
    **{one.__name__: ("photometric", one) for one in (grey, tint, channels, gamma, contrast, grain)},
    **{one.__name__: ("geometric", one) for one in (warp, ripple, patch, halves, tiles, upside_down)},
}


class CorruptedFrames:
    """Frames of a dataset by index, each with the corruption of its own random numbers."""

    def __init__(self, frames, indices, corrupt: Corruption, seed: int) -> None:
        self.frames, self.indices, self.corrupt, self.seed = frames, indices, corrupt, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.indices[place]])
        other = self.indices[(place + len(self) // 2) % len(self)]  # from another map
        image, other = (np.asarray(self.frames[index]["image"], np.float64) for index in (self.indices[place], other))
        return np.clip(np.rint(self.corrupt(image, other, rng)), 0, 255).astype(np.uint8)


# ---- what is found --------------------------------------------------------------------------------------------------------------


def score(sets: dict[str, ImageFeatures], reference: ImageFeatures, resamples: int) -> tuple[list[dict], dict]:
    """A row for each corruption, and the answer with its interval."""
    names = list(sets)
    estimates, draws = {}, {}
    for metric, part in (("FID", "image_features"), ("dFID", "depth_features")):
        features, base = [getattr(sets[name], part) for name in names], getattr(reference, part)
        estimates[metric] = torch.stack([feature_distance("frechet", one, base) for one in features])
        with tqdm(total=resamples, desc=f"{metric} resamples", disable=None) as bar:
            draws[metric] = resampled_distances("frechet", features, base, resamples, on_resample=bar.update)
    rows = []
    for column, name in enumerate(names):
        row = {"corruption": name, "kind": CORRUPTIONS[name][0], "frames": len(sets[name]), "reference_frames": len(reference)}
        for metric, values in draws.items():
            value, floor = float(estimates[metric][column]), float(estimates[metric][0])
            inside = centered_interval(value, values[:, column], len(reference))
            row |= {metric: value, f"{metric}_low": inside.low, f"{metric}_high": inside.high}
            if column:
                rise = centered_interval(value - floor, values[:, column] - values[:, 0], len(reference))
                row |= {f"{metric}_rise": value - floor, f"{metric}_rise_low": rise.low, f"{metric}_rise_high": rise.high}
        if column:
            row["dFID_rise_per_FID_rise"] = row["dFID_rise"] / row["FID_rise"]
        rows.append(row)
    return rows, selectivity(names, estimates, draws)


def selectivity(names, estimates, draws) -> dict:
    """Rise of dFID per rise of FID, that of all geometric corruptions over that of all photometric ones: above 1 is hoped for."""

    def answer(fid, dfid):
        ratios = {}
        for kind in ("photometric", "geometric"):
            chosen = [column for column, name in enumerate(names) if CORRUPTIONS[name][0] == kind]
            rises = [float(sum(values[column] - values[0] for column in chosen)) for values in (dfid, fid)]
            ratios[kind] = rises[0] / rises[1]
        return ratios["geometric"] / ratios["photometric"]

    value = answer(estimates["FID"], estimates["dFID"])
    drawn = torch.tensor([answer(fid, dfid) for fid, dfid in zip(draws["FID"], draws["dFID"])], dtype=torch.float64)
    inside = centered_interval(value, drawn, len(drawn))
    return {"selectivity": value, "low": inside.low, "high": inside.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/freedoom"))
    parser.add_argument("--frames", type=int, default=0, help="of each half; 0 for all")
    parser.add_argument("--corruptions", default="", help="some of them, e.g. tint,warp; all by default")
    parser.add_argument("--extractor", default=DEFAULT_EXTRACTOR)
    parser.add_argument("--estimator", default=DEFAULT_DEPTH_MODEL)
    parser.add_argument("--rendering", default="disparity")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("out/dfid_validation"))
    parser.add_argument("--out", type=Path, default=Path("results/dfid_validation.csv"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*below 2048.*")  # intervals are given
    parts = [FreedoomDataset(options.root / split, "depth") for split in ("test", "val")]
    frames = torch.utils.data.ConcatDataset(parts)
    even, odd = list(range(0, len(frames), 2)), list(range(1, len(frames), 2))
    if options.frames:
        spread = np.linspace(0, len(odd) - 1, options.frames).round().astype(int)
        even, odd = [even[index] for index in spread], [odd[index] for index in spread]
    models = FeatureModels(make_extractor(options.extractor), load_depth_model(options.estimator), options.rendering)
    sets = {"reference": CorruptedFrames(frames, even, CORRUPTIONS["none"][1], options.seed)}
    chosen = ["none", *(options.corruptions.split(",") if options.corruptions else list(CORRUPTIONS)[1:])]
    sets |= {name: CorruptedFrames(frames, odd, CORRUPTIONS[name][1], options.seed) for name in chosen}
    measured = {}
    for name, images in sets.items():
        measured[name] = extract(images, [str(index) for index in images.indices], models, cache=options.cache, title=name)
    rows, answer = score({name: measured[name] for name in chosen}, measured["reference"], options.resamples)
    facts = {f"selectivity{'' if key == 'selectivity' else '_' + key}": value for key, value in answer.items()}
    facts |= {"extractor": models.extractor.name, "estimator": models.depth_model.name, "rendering": options.rendering}
    facts |= {"resamples": options.resamples, **provenance(torch.device("cpu"), torch.float32, options.seed)}
    facts["command"] = f"python {' '.join(sys.argv)}"
    write_csv(options.out, [row | facts for row in rows])
    shown = ["corruption", "kind", "FID", "dFID", "FID_rise", "dFID_rise", "dFID_rise_low", "dFID_rise_high"]
    print(text_table(rows, [*shown, "dFID_rise_per_FID_rise"], digits=3))
    print(f"rise of dFID per rise of FID, geometric over photometric: {answer['selectivity']:.2f}", end=" ")
    print(f"[{answer['low']:.2f}, {answer['high']:.2f}]; features: {models.extractor.name}; {len(odd)} frames")


if __name__ == "__main__":
    main()
