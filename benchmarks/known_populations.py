"""What whole maps are worth beside smooth draws of single pixels, where what may be hidden is known exactly.

    noise2map data freedoom --split train --frames 6000 --supersample 4 --out rooms
    python benchmarks/known_populations.py --data rooms --out results/known_populations.csv
    python benchmarks/known_populations.py --data rooms --one-of-each-map --alike 4 16 48 --out results/known_populations.csv

Of some frames a rectangle is hidden. The frames whose labels agree best around it are taken for all that may be there, each as
likely: the truth is one of them. The exact sampler draws of them, whole, and no sampler can have a lower energy score on average;
the control knows how often each class stands in each cell of them, exactly, and draws by a smooth field, as ``sampling="field"``
does from one call. Both know the same, so that they differ by how cells hang together alone. The fewer frames, the surer the guess.
Frames of one map may agree because they show one place; with ``--one-of-each-map`` a map gives its best frame only.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from noise2map.data.freedoom.dataset import open_rendered
from noise2map.data.subsets import evenly_spaced
from noise2map.data.transforms import Hide
from noise2map.diffusion.fields import draw_classes
from noise2map.metrics.intervals import bootstrap_intervals
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance

CLASSES = 11  # ten, and one for the pixels of which nobody knows
CELL = 4  # pixels: maps are drawn on the decoder's cells
PATCH = 6  # cells: the 24 pixels of the energy score of `noise2map evaluate`
SIZES = (("energy", PATCH), ("energy_whole", None))
SET = 8  # maps of which the best is taken


class Frames:
    """Label maps of a rendered split on the decoder's cells, all in memory."""

    def __init__(self, root: str) -> None:
        dataset = open_rendered(root, task="segmentation")
        maps = [dataset[index]["labels"] for index in tqdm(range(len(dataset)), desc="labels")]
        self.size = maps[0].shape
        self.labels = at_cells(torch.from_numpy(np.stack(maps))).clamp_max(CLASSES - 1)  # 255 is nobody's
        self.places = [str(line["map"]) for line in dataset.records]

    def hidden(self, index: int, seed: int) -> Tensor:
        """A rectangle of the frame: which cells ``(h, w)``, as `noise2map evaluate --hide rectangle` covers them."""
        sample = {"image": Image.new("RGB", self.size[::-1]), "labels": np.zeros(self.size, np.uint8)}
        return at_cells(torch.from_numpy(Hide("rectangle")(sample, np.random.default_rng([seed, index]))["hidden"]))

    def like(self, index: int, hidden: Tensor, count: int, one_of_each_map: bool) -> Tensor:
        """Label maps ``(count, h, w)`` of the other frames that agree best with one in what is not hidden."""
        share = (self.labels == self.labels[index])[:, ~hidden].float().mean(1)
        share[index] = -1
        order = share.argsort(descending=True, stable=True).tolist()
        if one_of_each_map:
            order = list({self.places[one]: one for one in reversed(order)}.values())[::-1]
        return self.labels[order[:count]].long()


def at_cells(maps: Tensor) -> Tensor:
    """The pixel beside the middle of each cell: ``(..., H, W)`` to ``(..., h, w)``."""
    return maps[..., CELL // 2 :: CELL, CELL // 2 :: CELL]


def patches(hidden: Tensor, size: int | None) -> list[Tensor]:
    """The hidden cells of each square patch that is hidden by half, as `patch_energy_score` counts them; None: all at once."""
    if size is None:
        return [hidden.flatten().nonzero().flatten()]
    numbers = torch.arange(hidden.numel()).view(hidden.shape)
    squares = [
        (numbers[top : top + size, left : left + size], hidden[top : top + size, left : left + size])
        for top in range(0, hidden.shape[0] - size + 1, size)
        for left in range(0, hidden.shape[1] - size + 1, size)
    ]
    return [cells[mask] for cells, mask in squares if mask.float().mean() >= 0.5]


def distances(a: Tensor, b: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Distances of class maps ``(N, h, w)`` and ``(M, h, w)``, each with each ``(N, M)``: the mean over patches."""
    one_hot = [functional.one_hot(maps.flatten(1), CLASSES).float() for maps in (a, b)]
    alike = [torch.einsum("nck,mck->nm", *(maps[:, cells] for maps in one_hot)) / len(cells) for cells in places]
    return torch.stack([2 * (1 - share) for share in alike]).clamp_min(0).sqrt().mean(0)


def scores_of(drawn: Tensor, population: Tensor, hidden: Tensor) -> dict[str, float]:
    """Scores of the way in which maps ``(R, h, w)`` were drawn, their means over all truths of the population."""
    found, count = {}, len(drawn)
    for name, size in SIZES:
        places = patches(hidden, size)
        to_truth, among = distances(drawn, population, places), distances(drawn, drawn, places)
        found[name] = float(to_truth.mean() - among.sum() / (2 * count * (count - 1)))
    wrong = to_truth.square() / 2
    found["wrong_sample"] = float(wrong.mean())
    found["wrong_best"] = float(wrong.view(-1, SET, len(population)).amin(1).mean())
    return found


def rows_of(frames: Frames, count: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each way of drawing from populations of one size."""
    chosen = evenly_spaced(len(frames.places), options.frames)
    ways: list[float | None] = [None, *options.smoothness]
    found: list[list[dict[str, float]]] = [[] for _ in ways]
    for index in tqdm(chosen, desc=f"{count} alike"):
        hidden = frames.hidden(index, options.seed)
        population = frames.like(index, hidden, count, options.one_of_each_map)
        log_often = torch.stack([(population == k).double().mean(0) for k in range(CLASSES)]).log()[None]
        for smoothness, scores in zip(ways, found):
            generator = torch.Generator().manual_seed(options.seed + index)
            if smoothness is None:
                drawn = population[torch.randint(len(population), (options.draws,), generator=generator)]
                # The energy score of the truth's own distribution is half the mean distance of two maps, which may be one twice.
                exact = {name: float(distances(population, population, patches(hidden, size)).mean() / 2) for name, size in SIZES}
                scores.append(scores_of(drawn, population, hidden) | exact)
            else:
                scores.append(scores_of(draw_classes(log_often, options.draws, smoothness, [generator])[0], population, hidden))
    places = [frames.places[index] for index in chosen]
    return [{"alike": count} | line(smoothness, scores, found[0], places) for smoothness, scores in zip(ways, found)]


def line(
    smoothness: float | None, scores: list[dict[str, float]], whole: list[dict[str, float]], places: list[str]
) -> dict[str, object]:
    """Means over the frames, and how far whole maps are below, in shares, with intervals over maps."""
    row: dict[str, object] = {"drawn": "whole maps" if smoothness is None else f"field over {smoothness:g} cells"}
    for name in scores[0]:
        pairs = torch.tensor([[one[name], other[name]] for one, other in zip(scores, whole)], dtype=torch.float64)
        row[name] = float(pairs[:, 0].mean())
        if smoothness is not None:
            (gain,) = bootstrap_intervals(pairs, lambda some: 1 - some[:, 1:].mean(0) / some[:, :1].mean(0), clusters=places)
            row |= {f"{name}_above": gain.estimate, f"{name}_above_low": gain.low, f"{name}_above_high": gain.high}
    return row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--alike", type=int, nargs="+", default=[4, 16, 64, 128, 256], help="frames of a population")
    parser.add_argument("--smoothness", type=float, nargs="+", default=[0, 1, 2, 4, 8], help="cells")
    parser.add_argument("--frames", type=int, default=150, help="frames of which a part is hidden")
    parser.add_argument("--draws", type=int, default=32, help="of the control")
    parser.add_argument("--one-of-each-map", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.draws % SET:
        parser.error(f"--draws is {options.draws}; expected a multiple of {SET}")
    frames = Frames(options.data)
    facts = provenance(torch.device("cpu"), torch.float64, options.seed) | {"command": shlex.join(["python", *sys.argv])}
    facts |= {"frames": options.frames, "draws": options.draws, "one_of_each_map": options.one_of_each_map}
    rows = [row for count in options.alike for row in rows_of(frames, count, options)]
    print(
        text_table([{name: value for name, value in row.items() if not name.endswith(("_low", "_high"))} for row in rows], digits=3)
    )
    if options.out:
        exact = [{name: f"{value:.6f}" if isinstance(value, float) else value for name, value in row.items()} for row in rows]
        merge_rows(options.out, [row | facts for row in exact], ("alike", "drawn", "one_of_each_map"))


if __name__ == "__main__":
    main()
