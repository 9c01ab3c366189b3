"""How many planted label errors does an audit find? 200 errors in frames of Freedoom, ranked by `noise2map audit` and by others.

    python benchmarks/audit.py --split test --seed 0 --out results/audit.csv
    python benchmarks/audit.py --split test --frames 200 --seed 0 --out results/audit.csv    # an error in every frame
    python benchmarks/audit.py --split val --seed 1      # what the score's constants were chosen on

Three kinds of errors, at most one in a frame, each of at least `LEAST_PIXELS`: `moved` (a region gets the class of a neighbor),
`erased` (an item, decoration or monster gets the class around it) and `shifted` (a region is moved by `SHIFT` pixels against the
image). They are written to a folder of images and maps, which is audited like anybody's.

A ranked region finds an error if at least half of its pixels are planted and it covers at least a quarter of the error. Methods:

- audit: `noise2map audit`, the order of suspects.csv.
- area, random: the same regions, the largest first, or shuffled (mean of 20).
- cleanlab: its filter of semantic segmentation (`pip install cleanlab`, AGPL; not a dependency) with the same probabilities;
  connected pixels of one label that it calls issues, ranked by its mean label quality, and by their number.
"""

import argparse
import importlib.util
import math
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from noise2map.audit.components import mask_of
from noise2map.audit.page import outlined
from noise2map.audit.ranking import Suspect, regions_in
from noise2map.audit.run import AuditOptions, run_audit
from noise2map.data.freedoom.catalog import DECOR, IGNORE, ITEM, MONSTER, class_names, class_palette
from noise2map.data.freedoom.dataset import open_rendered
from noise2map.data.images import open_class_map
from noise2map.data.subsets import Subset
from noise2map.evaluation.opening import ScoredData
from noise2map.inference.batches import batches
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import PredictionOptions
from noise2map.models.resizing import resize_logits
from noise2map.report.palettes import colorize_labels, legend_entries
from noise2map.report.panels import Cell, Panel, render
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.files import write_image, write_json
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.provenance import provenance

KINDS = ("moved", "erased", "shifted")
OBJECTS = (ITEM, DECOR, MONSTER)
LEAST_PIXELS = 60
SHIFT = 6
LARGEST_SHARE = 0.25
CUTS = (100, 200, 400)
IDENTITY = ("model", "split", "frames", "seed", "method")

Ranked = list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Planted:
    """An error: what kind, and which pixels ``(H, W)`` bool have a wrong label now."""

    kind: str
    pixels: np.ndarray


def regions_of(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Class and pixels ``(H, W)`` bool of every connected region."""
    found = []
    for label in np.unique(labels[labels != IGNORE]):
        numbers, count = ndimage.label(labels == label)
        found += [(int(label), numbers == number) for number in range(1, count + 1)]
    return found


def neighbors_of(labels: np.ndarray, region: np.ndarray, label: int) -> Counter[int]:
    """Classes around a region with the pixels of their shore, those of at least eight."""
    shore = ndimage.binary_dilation(region) & ~region & (labels != IGNORE) & (labels != label)
    return Counter({one: count for one, count in Counter(labels[shore].tolist()).items() if count >= 8})


def shifted(labels: np.ndarray, region: np.ndarray, label: int, generator: np.random.Generator) -> np.ndarray:
    """The labels with a region moved by `SHIFT` pixels in a random direction; what it leaves gets the nearest other label."""
    angle = generator.uniform(0, 2 * np.pi)
    offset = (round(SHIFT * np.sin(angle)), round(SHIFT * np.cos(angle)))
    moved = ndimage.shift(region.astype(np.uint8), offset, order=0).astype(bool)
    nearest = ndimage.distance_transform_edt(region | (labels == IGNORE), return_distances=False, return_indices=True)
    wrong = np.where(region & ~moved, labels[tuple(nearest)], labels)
    wrong[moved] = label
    wrong[labels == IGNORE] = IGNORE
    return wrong


def plant(labels: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray | None:
    """Labels ``(H, W)`` with one error; None where there is no place for it."""
    regions = regions_of(labels)
    generator.shuffle(regions)
    for label, region in regions:
        area = int(region.sum())
        around = neighbors_of(labels, region, label)
        if not LEAST_PIXELS <= area <= LARGEST_SHARE * labels.size or not around or (kind == "erased" and label not in OBJECTS):
            continue
        if kind == "shifted":
            wrong = shifted(labels, region, label, generator)
        else:
            other = int(generator.choice(sorted(around))) if kind == "moved" else around.most_common(1)[0][0]
            wrong = np.where(region, np.uint8(other), labels)
        if (wrong != labels).sum() >= LEAST_PIXELS:
            return wrong
    return None


def plant_errors(dataset: Any, root: Path, errors: int, seed: int) -> dict[str, Planted]:
    """Write a folder of images and maps with planted errors.

    Returns:
        The error of each image that has one.
    """
    generator = np.random.default_rng(seed)
    chosen: dict[str, Planted] = {}
    for folder in ("images", "maps"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for place, index in enumerate(generator.permutation(len(dataset))):
        sample = dataset[int(index)]
        labels, wrong, missing = sample["labels"], None, errors - len(chosen)
        if missing:
            first = len(chosen) % len(KINDS)
            # A frame without a place for the kind whose turn it is stays as it is, unless every frame is needed.
            scarce = len(dataset) - place <= missing
            for kind in KINDS[first:] + KINDS[:first] if scarce else KINDS[first : first + 1]:
                wrong = plant(labels, kind, generator)
                if wrong is not None:
                    chosen[sample["id"]] = Planted(kind, wrong != labels)
                    break
        sample["image"].save(root / "images" / f"{sample['id']}.png")
        Image.fromarray(labels if wrong is None else wrong).save(root / "maps" / f"{sample['id']}.png")
    write_json(root / "classes.json", {str(index): name for index, name in dataset.id2label.items()})
    return chosen


def probabilities(predictor: Predictor, dataset: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, labels ``(N, H, W)`` and the probabilities that the audit saw ``(N, K, H, W)``, all images of one size."""
    options = PredictionOptions().resolved(predictor.model.config)
    samples = {sample["id"]: sample for sample in (dataset[index] for index in range(len(dataset)))}
    labels = np.stack([sample["labels"] for sample in samples.values()])
    found = np.zeros((len(labels), len(predictor.id2label), *labels.shape[1:]), np.float32)
    places = {name: index for index, name in enumerate(samples)}
    images = ((name, sample["image"]) for name, sample in samples.items())
    for batch in batches(images, predictor.model, predictor.processor, options, 8):
        out = predictor.decode_batch(batch, batch.keys, options)
        processed = (batch.size[1], batch.size[0])
        flag = bool(out.log_probabilities)
        logits = resize_logits(out.logits.float(), processed, labels.shape[1:], log_probabilities=flag)
        found[[places[name] for name in batch.keys]] = logits.softmax(1).numpy()
    return list(samples), labels, found


def by_cleanlab(names: Sequence[str], labels: np.ndarray, found: np.ndarray, least: int) -> dict[str, Ranked]:
    """Connected pixels of one label that cleanlab calls issues, in two orders."""
    from cleanlab.segmentation.filter import find_label_issues
    from cleanlab.segmentation.rank import get_label_quality_scores

    # It knows no unknown labels: there they are what the model says, which is no issue.
    given = np.where(labels == IGNORE, found.argmax(1), labels)
    issues = find_label_issues(given, found, downsample=1, n_jobs=1, verbose=False)
    _, quality = get_label_quality_scores(given, found, method="softmin", verbose=False)
    regions = []
    for name, image_labels, wrong, scores in zip(names, given, issues, quality):
        for _, region in regions_of(np.where(wrong, image_labels, IGNORE)):
            if region.sum() >= least:
                regions.append((name, region, float(scores[region].mean()), int(region.sum())))
    orders = {"cleanlab, by quality": lambda one: one[2], "cleanlab, by area": lambda one: -one[3]}
    return {method: [(name, region) for name, region, *_ in sorted(regions, key=key)] for method, key in orders.items()}


def finds(region: np.ndarray, error: Planted) -> bool:
    """Whether a region points at an error: half of it is planted, and it covers a quarter of it."""
    both = int((region & error.pixels).sum())
    return 2 * both >= int(region.sum()) and 4 * both >= int(error.pixels.sum())


def score(ranked: Ranked, planted: dict[str, Planted]) -> dict[str, Any]:
    """What an order of regions finds.

    Returns:
        Errors that any region finds (``reachable``: no order finds more), errors found among the first regions, the share of these
        regions that point at one, and the errors of each kind among the first 400.
    """
    first: dict[str, int] = {}
    right = []
    for place, (name, region) in enumerate(ranked[: max(CUTS)]):
        hit = name in planted and finds(region, planted[name])
        right.append(hit)
        if hit:
            first.setdefault(name, place)
    every = {name for name, region in ranked if name in planted and finds(region, planted[name])}
    row: dict[str, Any] = {"reachable": len(every)}
    for cut in CUTS:
        row[f"found_{cut}"] = sum(place < cut for place in first.values())
        row[f"precision_{cut}"] = sum(right[:cut]) / cut
    return row | {f"{kind}_{max(CUTS)}": sum(planted[name].kind == kind for name in first) for kind in KINDS}


def mean_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of rows of numbers."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def draw(path: Path, suspects: Sequence[Suspect], planted: dict[str, Planted], work: Path) -> None:
    """Image, planted labels and the model's map of the most suspicious error of each kind."""
    names = class_names(10)
    palette, cells, maps = class_palette(10), [], []
    for kind in KINDS:
        found = (one for one in suspects if one.id in planted and planted[one.id].kind == kind)
        shape = next(iter(planted.values())).pixels.shape
        one = next(one for one in found if finds(mask_of(one.region.runs, shape), planted[one.id]))
        image = np.asarray(Image.open(work / "planted" / "images" / f"{one.id}.png"))
        labels, model = (open_class_map(work / folder / f"{one.id}.png") for folder in ("planted/maps", "audit/maps"))
        maps += [labels, model]
        probability = math.exp(one.region.log_model)
        pixels = {
            f"{kind}, rank {suspects.index(one) + 1}": image,
            f"labels: {names[one.region.label]}": colorize_labels(labels, palette),
            f"model: {names[one.region.model]} ({probability:.2f})": colorize_labels(model, palette),
        }
        whole = (0, 0, shape[1], shape[0])
        cells += [Cell(title, outlined(layer, mask_of(one.region.runs, shape), whole)) for title, layer in pixels.items()]
    write_image(path, render(Panel(cells, 3, "", legend_entries(maps, names, palette)), width=1080), optimize=True)


def rankings(chosen: argparse.Namespace, planted: dict[str, Planted], work: Path) -> Iterator[tuple[str, list[Ranked]]]:
    """Each method with its order of regions, several where it is drawn by lot."""
    root = work / "planted"
    data = ScoredData(dataset="folder", root=root, split="all", device="cpu")
    options = AuditOptions(model=chosen.model, data=data, top=10**6, shown=chosen.shown)
    with OutputFolder(work / "audit") as folder:
        report = run_audit(options, folder)
    predictor = Predictor.from_pretrained(chosen.model, "cpu")
    own = open_own(root)
    shape = own[0]["labels"].shape
    if chosen.figure is not None:
        draw(chosen.figure, report.suspects, planted, work)
    yield "audit", [[(one.id, mask_of(one.region.runs, shape)) for one in report.suspects]]
    every = [(name, one) for name in own.ids for one in regions_in(work / "audit" / "regions" / f"{name}.json")]
    masks = [(name, mask_of(one.runs, shape)) for name, one in every]
    largest = sorted(range(len(every)), key=lambda place: -every[place][1].area)
    yield "area", [[masks[place] for place in largest]]
    shuffles = [np.random.default_rng(draw).permutation(len(every)) for draw in range(20)]
    yield "random", [[masks[place] for place in shuffle] for shuffle in shuffles]
    if importlib.util.find_spec("cleanlab") is None:
        print("cleanlab is not here (pip install cleanlab); its rows are left out")
        return
    with torch.inference_mode():
        names, labels, found = probabilities(predictor, own)
    for method, ranked in by_cleanlab(names, labels, found, round(options.min_share * labels[0].size)).items():
        yield method, [ranked]


def open_own(root: Path) -> Any:
    """The folder that was audited."""
    from noise2map.data.folder import open_folder

    return open_folder(root, "all", "segmentation")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="freedoom-segmentation-tiny")
    parser.add_argument("--root", type=Path, default=Path("data/freedoom"), help="folder of the rendered splits")
    parser.add_argument("--split", default="test")
    parser.add_argument("--frames", type=int, help="evenly spaced frames of the split; all by default")
    parser.add_argument("--errors", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=50, help="regions on the audit's page")
    parser.add_argument("--work", type=Path, help="keep the planted folder and the audit here, or go on with it")
    parser.add_argument("--figure", type=Path, help="draw the first error of each kind that the audit found")
    parser.add_argument("--out", type=Path, help="CSV file to merge the rows into")
    chosen = parser.parse_args(arguments)
    frames = Subset.evenly_spaced(open_rendered(chosen.root, chosen.split), chosen.frames)
    work = chosen.work or Path(tempfile.mkdtemp())
    try:
        planted = plant_errors(frames, work / "planted", chosen.errors, chosen.seed)
        sizes = [int(error.pixels.sum()) for error in planted.values()]
        facts = {"model": chosen.model, "split": chosen.split, "frames": len(frames), "errors": len(planted)}
        facts |= {"least_pixels": min(sizes), "median_pixels": int(np.median(sizes))}
        rows = []
        for method, orders in rankings(chosen, planted, work):
            if method == "audit":
                errors = [name in planted and finds(region, planted[name]) for name, region in orders[0][: max(CUTS)]]
                print(
                    f"ranks without a planted error, to look at: {[place for place, one in enumerate(errors, 1) if not one][:60]}"
                )
            rows.append({**facts, "method": method, **mean_of([score(ranked, planted) for ranked in orders])})
        print(text_table(rows))
        print(f"planted: {dict(Counter(error.kind for error in planted.values()))}")
        if chosen.out is not None:
            origin = provenance(torch.device("cpu"), torch.float32, chosen.seed)
            origin["command"] = shlex.join(["python", "benchmarks/audit.py", *(sys.argv[1:] if arguments is None else arguments)])
            merge_rows(chosen.out, [{**row, **origin} for row in rows], IDENTITY)
    finally:
        if chosen.work is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
