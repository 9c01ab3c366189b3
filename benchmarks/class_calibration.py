"""How well can the confidence of classes be calibrated for places that it was not calibrated on, and by what?

    python benchmarks/class_calibration.py --model freedoom-segmentation-tiny --out results/class_calibration.csv
    python benchmarks/class_calibration.py --average steps --out results/class_calibration.csv

Pixels of two splits with different maps of the game are drawn once from the model (`--work` keeps them). Every method is fitted
on the first split and scored on the second, with 95 % bootstrap intervals over its maps; and on the first split alone with one map
left out at a time, which is what methods are to be chosen by. Methods:

- before, temperature, isotonic: as `noise2map calibrate` knows them.
- entropy: a temperature for each pixel by its own entropy, log T = a + b log H (Balanya, Maroñas & Ramos 2024).
- vector: a factor and an offset for each class (Guo et al. 2017).
- own: the temperature of each scored map at which mean confidence is accuracy. Nobody knows it before the labels: what a
  temperature that depends on the place could reach at best.
"""

import argparse
import functools
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from noise2map.calibration.drawing import DrawnImages, draw_images, group_numbers, open_images
from noise2map.inference.loading import load_model
from noise2map.metrics.intervals import bootstrap_intervals
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of
from noise2map.tasks.calibrating import DrawnPixels
from noise2map.zoo import label_of

BINS = 15
IDENTITY = ("model", "calibrated_on", "split", "decoding", "method", "scored")

Corrected = Callable[[DrawnPixels], Tensor]  # pixels -> logits (P, K)


def draw(options: argparse.Namespace, split: str) -> tuple[DrawnImages, str]:
    """Pixels of a split as the model sees them, and how maps were decoded."""
    model, processor = load_model(options.model, "cpu", "float32", ("noise2map",))
    task = task_of(model)
    decoding = DecodingOptions(num_inference_steps=options.steps, average=options.average).resolved(model.config)
    stored = options.work / f"{split}.pt" if options.work else None
    if stored is not None and stored.is_file():
        return DrawnImages(DrawnPixels(*(part := torch.load(stored))["pixels"]), part["ids"], part["places"]), decoding.name
    data, _ = open_images(task, model, processor, options.model, "freedoom", options.root, split, options.limit)
    with tqdm(total=len(data), desc=split, unit="image") as bar:
        drawn = draw_images(model, processor, task, task.calibrator(model), data, decoding, options.pixels, progress=bar.update)
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        pixels = drawn.pixels
        torch.save({"pixels": (pixels.stated, pixels.truth, pixels.image), "ids": drawn.ids, "places": drawn.places}, stored)
    return drawn, decoding.name


def minimize(parameters: Sequence[Tensor], logits: Callable[[], Tensor], truth: Tensor) -> None:
    """Minimises the cross entropy of logits over parameters."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(logits(), truth) + 1e-4 * sum(one.square().sum() for one in parameters)
        found.backward()
        return found

    optimizer.step(loss)


def fit_entropy(pixels: DrawnPixels) -> Corrected:
    """A temperature for each pixel by its own entropy."""
    weights = torch.zeros(2, requires_grad=True)

    def corrected(one: DrawnPixels) -> Tensor:
        p = one.stated.softmax(1)
        entropy = -(p * p.clamp(min=1e-12).log()).sum(1) / math.log(p.shape[1])
        power = weights[0] + weights[1] * ((entropy + 1e-4).log() + 3) / 3  # about standardised
        return one.stated * (-power).exp()[:, None]

    minimize([weights], lambda: corrected(pixels), pixels.truth)
    return lambda one: corrected(one).detach()


def fit_vector(pixels: DrawnPixels) -> Corrected:
    """A factor and an offset for each class."""
    factor, offset = (torch.zeros(pixels.stated.shape[1], requires_grad=True) for _ in range(2))
    minimize([factor, offset], lambda: pixels.stated * factor.exp() + offset, pixels.truth)
    return lambda one: (one.stated * factor.exp() + offset).detach()


def fit_known(calibrator: Any, method: str, pixels: DrawnPixels) -> Corrected:
    """A method of the command."""
    found = calibrator.by(method).fit(pixels, (0.9,), None)
    return lambda one: found.correct_classes(one.as_maps()[0])[0, :, :, 0].T


def own_temperatures(pixels: DrawnPixels, groups: Tensor) -> Tensor:
    """Logits of each group divided by the temperature at which its mean confidence is its accuracy."""
    logits = pixels.stated.clone()
    for group in groups.unique().tolist():
        own = groups == group
        accuracy = (logits[own].argmax(1) == pixels.truth[own]).double().mean()
        low, high = math.log(0.1), math.log(10)
        for _ in range(30):
            middle = (low + high) / 2
            surer = (logits[own] / math.exp(middle)).softmax(1).amax(1).double().mean() > accuracy
            low, high = (middle, high) if surer else (low, middle)
        logits[own] /= math.exp(middle)
    return logits


def bin_sums(logits: Tensor, pixels: DrawnPixels, images: int) -> Tensor:
    """For each image and bin of confidence the sum of right minus confident, and last the number of pixels: ``(N, 16)``."""
    confidence, labels = logits.double().softmax(1).max(1)
    place = pixels.image * (BINS + 1) + (confidence * BINS).long().clamp(max=BINS - 1)
    sums = torch.zeros(images, BINS + 1, dtype=torch.float64)
    sums.view(-1).index_add_(0, place, (labels == pixels.truth).double() - confidence)
    sums[:, BINS].index_add_(0, pixels.image, torch.ones_like(confidence))
    return sums


def statistic(sums: Tensor) -> Tensor:
    """Expected calibration error and accuracy minus mean confidence of images together, ``(2,)``."""
    total = sums.sum(0)
    return torch.stack([total[:BINS].abs().sum(), total[:BINS].sum()]) / total[BINS]


def scored(logits: Tensor, drawn: DrawnImages) -> dict[str, float]:
    """Scores of a split with intervals over its maps, and how far single maps are off, in per cent but for the likelihood."""
    pixels, places = drawn.pixels, [str(place) for place in drawn.places]
    sums = bin_sums(logits, pixels, len(drawn.ids))
    ece, gap = bootstrap_intervals(sums, statistic, clusters=places)
    names = list(dict.fromkeys(places))
    gaps = torch.stack([statistic(sums[[index for index, one in enumerate(places) if one == name]]) for name in names])
    found = {"ece": ece.estimate, "ece_low": ece.low, "ece_high": ece.high, "gap": gap.estimate, "gap_low": gap.low}
    found |= {"gap_high": gap.high, "map_gap_sd": float(gaps[:, 1].std()), "map_ece": float(gaps[:, 0].mean())}
    found = {f"{name}_percent": 100 * value for name, value in found.items()}
    found["error_percent"] = 100 * float((logits.argmax(1) != pixels.truth).double().mean())
    return found | {"nll": float(torch.nn.functional.cross_entropy(logits.double(), pixels.truth))}


def compare(calibrator: Any, first: DrawnImages, second: DrawnImages) -> list[dict[str, Any]]:
    """A row for each method."""
    methods: dict[str, Callable[[DrawnPixels], Corrected]] = {
        "before": lambda pixels: lambda one: one.stated,
        "temperature": functools.partial(fit_known, calibrator, "temperature"),
        "isotonic": functools.partial(fit_known, calibrator, "isotonic"),
        "entropy": fit_entropy,
        "vector": fit_vector,
    }
    groups = group_numbers([str(place) for place in first.places], first.pixels)
    folds = [[index for index, place in enumerate(first.places) if place == name] for name in dict.fromkeys(first.places)]
    rows = []
    for name, fit in methods.items():
        left_out = torch.empty_like(first.pixels.stated)
        for fold in folds:
            others = [index for index in range(len(first.ids)) if index not in set(fold)]
            left_out[torch.isin(first.pixels.image, torch.tensor(fold))] = fit(first.pixels.of_images(others))(
                first.pixels.of_images(fold)
            )
        rows.append({"method": name, "scored": "maps left out", **scored(left_out, first)})
        rows.append({"method": name, "scored": "other maps", **scored(fit(first.pixels)(second.pixels), second)})
    rows.append({"method": "own", "scored": "maps left out", **scored(own_temperatures(first.pixels, groups), first)})
    groups = group_numbers([str(place) for place in second.places], second.pixels)
    return [*rows, {"method": "own", "scored": "other maps", **scored(own_temperatures(second.pixels, groups), second)}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, compares and adds the rows to a table, in place of earlier ones of the same model, split and decoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="freedoom-segmentation-tiny")
    parser.add_argument("--root", type=Path, default=Path("data/freedoom"), help="folder of the rendered splits")
    parser.add_argument("--calibrate", default="val", help="split that is calibrated on")
    parser.add_argument("--split", default="test", help="split that is scored")
    parser.add_argument("--limit", type=int, default=0, help="images of each, evenly spaced; 0 for all")
    parser.add_argument("--pixels", type=int, default=300, help="most pixels of an image")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--average", choices=("last", "steps"))
    parser.add_argument("--work", type=Path, help="folder that keeps the drawn pixels")
    parser.add_argument("--out", type=Path, help="table to add to")
    options = parser.parse_args(arguments)
    first, decoding = draw(options, options.calibrate)
    second, _ = draw(options, options.split)
    model, _ = load_model(options.model, "cpu", "float32", ("noise2map",))
    rows = compare(task_of(model).calibrator(model), first, second)
    facts = {"model": label_of(options.model), "dataset": "freedoom", "calibrated_on": options.calibrate, "split": options.split}
    facts |= {"decoding": decoding, "images": f"{len(first.ids)}, {len(second.ids)}"}
    facts |= {"maps": f"{len(set(first.places))}, {len(set(second.places))}"}
    print(
        text_table(
            [{name: row[name] for name in list(row)[:5]} | {"map_gap_sd_percent": row["map_gap_sd_percent"]} for row in rows],
            digits=3,
        )
    )
    if options.out:
        origin = provenance(torch.device("cpu"), torch.float32, 0)
        words = sys.argv[1:] if arguments is None else arguments
        origin["command"] = shlex.join(["python", "benchmarks/class_calibration.py", *words])
        merge_rows(options.out, [{**facts, **row, **origin} for row in rows], IDENTITY)


if __name__ == "__main__":
    main()
