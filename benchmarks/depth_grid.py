"""Do the cells of a depth model show in the slopes of its map? Differences of log depth by the place of a pixel in its cell.

    python benchmarks/depth_grid.py freedoom-depth-laplace-tiny --root data/freedoom/val --out results/depth_grid.csv

A model says something at every fourth pixel; how what lies between is made decides whether a wall is flat. Of each model: the
relative error, the angle between true normals and those worked out from the predicted depth, the mean difference of log depth of
neighbors in two cells over that of neighbors in one, and the mean second difference of log depth at each of the four places in a
cell (rows and columns together), both where the truth is smooth. The row `truth` is what a map without cells has.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noise2map.data import FreedoomDataset
from noise2map.data.subsets import Subset
from noise2map.geometry import normals_from_depth
from noise2map.inference import Predictor
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

CELL = 4
FLAT_STEP, FLAT_BEND = 0.05, 0.01  # of true log depth between neighbors: less is a surface, more an edge
TO_CAMERA = torch.tensor([1.0, -1.0, -1.0])  # maps of normals look up and towards the viewer, a camera down and away


def by_place(values: Tensor, counts: Tensor, first: int) -> Tensor:
    """Mean of values ``(B, H, n)`` where a mask counts them, for each place in a cell; ``first`` is the place of column 0."""
    places = (torch.arange(values.shape[2]) + first) % CELL
    sums = [torch.stack([(values * counts)[..., places == k].sum(), counts[..., places == k].sum()]) for k in range(CELL)]
    return torch.stack(sums, 1)


def slopes(depth_m: Tensor, truth_m: Tensor, valid: Tensor) -> dict[str, float]:
    """Differences across and inside cells, and bends by place; maps ``(B, H, W)``, cells begin at pixel 0.

    A first difference belongs to the gap after a pixel: that after the fourth is between cells. A bend belongs to its middle pixel.
    """
    steps, bends = torch.zeros(2, CELL), torch.zeros(2, CELL)
    for transpose in (False, True):
        predicted, truth, known = ((m.transpose(1, 2) if transpose else m) for m in (depth_m, truth_m, valid))
        predicted, truth = predicted.log(), torch.where(known, truth, 1).log()
        flat = known[..., 1:] & known[..., :-1] & (truth.diff(dim=2).abs() < FLAT_STEP)
        steps += by_place(predicted.diff(dim=2).abs(), flat, 0)
        straight = flat[..., 1:] & flat[..., :-1] & (truth.diff(n=2, dim=2).abs() < FLAT_BEND)
        bends += by_place(predicted.diff(n=2, dim=2).abs(), straight, 1)
    inside = steps[0, :-1].sum() / steps[1, :-1].sum()
    found = {"across_over_inside": float(steps[0, -1] / steps[1, -1] / inside)}
    return found | {f"bend_{k}": float(value) for k, value in enumerate(bends[0] / bends[1])}


def angle(depth_m: Tensor, intrinsics: Tensor, normals: Tensor) -> float:
    """Mean angle in degrees between true normals ``(B, H, W, 3)`` and those of a depth map, where both are known."""
    found = normals_from_depth(depth_m, intrinsics) * TO_CAMERA
    known = (normals.norm(dim=-1) > 0.5) & (found.norm(dim=-1) > 0.5)
    return float((found * normals).sum(-1).clamp(-1, 1).acos().rad2deg()[known].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shipped names or folders of checkpoints")
    parser.add_argument("--root", type=Path, required=True, help="a rendered split with normals")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    samples = list(Subset.evenly_spaced(FreedoomDataset(chosen.root, "all"), chosen.limit))
    truth, valid, normals, intrinsics = (
        torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in ("depth_m", "valid", "normals", "intrinsics")
    )
    maps = {"truth": torch.where(valid, truth, 1)}
    for name in chosen.models:
        predictor = Predictor.from_pretrained(name, "cpu")
        found = [predictor(sample["image"], [sample["id"]], num_inference_steps=1)[0].depth_m for sample in samples]
        maps[name] = torch.stack([torch.as_tensor(one) for one in found])
    facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
    rows: list[dict[str, Any]] = []
    for name, depth_m in maps.items():
        scores = {"abs_rel": float(((depth_m - truth).abs() / truth.clamp(min=0.1))[valid].mean())}
        scores |= {"angle": angle(torch.where(valid, depth_m, 0) if name == "truth" else depth_m, intrinsics, normals)}
        rows.append({"model": name, "frames": len(samples)} | scores | slopes(depth_m, truth, valid))
    print(text_table(rows, digits=4))
    if chosen.out is not None:
        write_csv(chosen.out, [row | facts for row in rows])


if __name__ == "__main__":
    main()
