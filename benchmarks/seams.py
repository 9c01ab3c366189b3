"""Do tiles show? Rendered frames in tiles against the same frames whole: differences at the edges of tiles, and scores.

    noise2map data freedoom --split test --frames 12 --size 640x480 --seed 3 --out rooms-640
    python benchmarks/seams.py --data rooms-640 --tile 192 --out results/seams.csv

Of each frame the map is made whole, and in tiles in four ways: overlaps averaged plainly with noise of each tile's own; the same
with one field of noise; blended, that is with weights which rise over the overlap; and for depth, also brought to the level of the
map of the whole frame. The seam score is the mean difference of pixels (of log depth, or the share of those whose class changes)
a cell apart that lie on the two sides of an edge of a tile, divided by that of all others of the frame: a map without
seams has the ratio of the truth. Whole frames are also processed at the model's own size.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.data.freedoom.dataset import open_rendered
from noise2map.diffusion import image_generator
from noise2map.inference.predictor import Predictor
from noise2map.inference.tiling.decoding import TiledDecoder, TileNoise
from noise2map.inference.tiling.plan import TilePlan, cut
from noise2map.models.decoding import PredictionOptions
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of
from noise2map.tasks.scoring import ScoringOptions

MODELS = ("freedoom-depth-laplace-tiny", "freedoom-segmentation-tiny")
CELL = 4


class OwnNoise(TiledDecoder):
    """Tiles that know nothing of each other's noise."""

    def _tile(self, image: Any, corner: tuple[int, int], noise: TileNoise) -> Any:
        key = f"tile {corner[0]} {corner[1]}"
        return super()._tile(image, corner, TileNoise(image_generator(self.options.seed, key), noise.shape))


def methods(predictor: Predictor, options: PredictionOptions, plan: TilePlan) -> Iterator[tuple[str, Any]]:
    """Names, and functions from image and id to an output of the model."""
    parts = predictor.model, predictor.processor, task_of(predictor.model), options
    plain = replace(plan, overlap=CELL)  # weights that are full from the first cell on
    yield "tiles, own noise, plain mean", lambda image, key: OwnNoise(*parts, align=False).decode(image, key, plain)
    yield "tiles, shared noise, plain mean", lambda image, key: TiledDecoder(*parts, align=False).decode(image, key, plain)
    yield "tiles, shared noise, blended", lambda image, key: TiledDecoder(*parts, align=False).decode(image, key, plan)
    if predictor.in_metres:
        yield "tiles, shared noise, blended, aligned", lambda image, key: TiledDecoder(*parts).decode(image, key, plan)


def edges(plan: TilePlan) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns before which a tile begins or ends within the image."""
    found = []
    for spans, length in ((plan.rows, plan.size[1]), (plan.columns, plan.size[0])):
        found.append(np.array(sorted({place for span in spans for place in span} - {0, length})))
    return found[0], found[1]


def seam_sums(values: np.ndarray, plan: TilePlan, classes: bool) -> np.ndarray:
    """Sums and counts of differences over a cell, across edges and all others, ``(4,)``."""
    totals = np.zeros(4)
    for axis, places in enumerate(edges(plan)):
        moved = np.moveaxis(values, axis, 0)
        distance = moved[CELL:] != moved[:-CELL] if classes else np.abs(moved[CELL:] - moved[:-CELL])
        across = np.zeros(len(distance), bool)
        across[places - CELL // 2] = True
        totals += [distance[across].sum(), distance[across].size, distance[~across].sum(), distance[~across].size]
    return totals


def run(name: str, data: str, tile: int, limit: int) -> list[dict[str, Any]]:
    """One row for each method."""
    predictor = Predictor.from_pretrained(name, device="cpu")
    task, classes = task_of(predictor.model), predictor.has_classes
    samples = open_rendered(data, task=predictor.task, limit=limit)
    options = PredictionOptions(size="native").resolved(predictor.model.config)
    sums: dict[str, np.ndarray] = {}
    scorers: dict[str, Any] = {}
    plan = cut(samples[0]["image"].size, tile)
    whole = {"whole, at the model's size": None, "whole, at the frame's size": "native"}
    for number in range(len(samples)):
        sample = samples[number]
        image, truth = sample["image"], task.truth(sample)
        size = (image.height, image.width)
        found: dict[str, Any] = {}
        with torch.inference_mode():
            for label, processed in whole.items():
                width, height = predictor.processor.processed_size(*image.size, processed)
                pixels = predictor.processor(
                    images=image, size={"height": height, "width": width}, keep_aspect_ratio=False, return_tensors="pt"
                )["pixel_values"]
                features = predictor.model.encode_image(pixels)
                found[label] = options.decode(predictor.model, features, [sample["id"]])
            for label, decode in methods(predictor, options, plan):
                found[label] = decode(image, sample["id"])
        for label, out in found.items():
            values = task.arrays(out, predictor.processor, [size])[0]
            values = values if classes else np.log(values)
            sums[label] = sums.get(label, 0) + seam_sums(values, plan, classes)
            scorer = scorers.setdefault(label, task.scorer(predictor.model, ScoringOptions()))
            scorer.update(out, size, [number], [truth])
        known = truth.numpy() if classes else np.log(np.where(truth.numpy() > 0, truth.numpy(), np.median(truth.numpy())))
        sums["truth"] = sums.get("truth", 0) + seam_sums(known, plan, classes)
        print(name, number, flush=True)
    rows = []
    for label, (across, count, inside, others) in sums.items():
        row = {"model": name, "method": label, "frames": len(samples), "size": f"{plan.size[0]}x{plan.size[1]}", "tile": tile}
        row |= {"tiles": plan.count, "across": f"{across / count:.5f}", "inside": f"{inside / others:.5f}"}
        row["seam_ratio"] = (across / count) / (inside / others)
        if label in scorers:
            scores = scorers[label].scores()
            row |= {score: f"{float(scores[score]):.4f}" for score in task.compared_scores[:3] if score in scores}
        rows.append(row)
    return rows


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tile", type=int, default=192)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in run(name, arguments.data, arguments.tile, arguments.limit or None)]
    print(text_table(rows))
    if arguments.out:
        facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
        merge_rows(arguments.out, [row | facts for row in rows], ("model", "method", "tile", "size"))


if __name__ == "__main__":
    main()
