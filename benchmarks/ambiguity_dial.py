"""Does the uncertainty of a model follow its error when less and less can be told? Samples along the dial of `Ambiguity`.

    python benchmarks/ambiguity_dial.py freedoom-segmentation-tiny freedoom-depth-laplace-tiny --out results/ambiguity.csv
    python benchmarks/ambiguity_dial.py runs/completion/final --root data/freedoom/test --limit 200
    python benchmarks/ambiguity_dial.py freedoom-bev-camera-completion-tiny --surround data/surround --split val

One row for each model, knob and value: the mean error (share of wrong pixels, or of wrong layers of cells cut at 0.5, or relative
error of depth), and the mean of the uncertainty that the model gives by default, where the truth is known. Places that are covered
depend on the sample alone; larger ones contain the smaller. Models of the bird's-eye view have darkness and the number of cameras.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from noise2map.data import load_samples
from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT, FreedoomDataset
from noise2map.data.subsets import Redrawn, Subset
from noise2map.data.transforms import Ambiguity
from noise2map.inference import Predictor
from noise2map.inference.bev import encode_sample, predict_map
from noise2map.inference.loading import load_model
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import read_csv, text_table, write_csv
from noise2map.runs.provenance import provenance
from noise2map.tasks.bev import open_bev_dataset

DIAL: dict[str, tuple[float, ...]] = {
    "hide_share": (0.0, 0.15, 0.3, 0.45, 0.6, 0.75),
    "darkness": (0.0, 0.5, 0.7, 0.8, 0.9, 0.95),
    "zoom": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "cameras": (6, 5, 4, 3, 2, 1),
}
IMAGE_KNOBS = ("hide_share", "zoom")  # of samples of one image alone

Reading = Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray, str]]
"""Raw sample -> error and uncertainty of each pixel whose truth is known, and the kind of uncertainty."""


def errors_of(prediction: Any, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Error (wrong or not, or relative of depth) and uncertainty of each pixel whose truth is known."""
    if prediction.labels is not None:
        known = sample["labels"] != 255
        return (prediction.labels != sample["labels"])[known], prediction.uncertainty[known]
    if prediction.depth_m is None:
        raise ValueError(f"{prediction.task} maps have no error here; expected a model of classes or depth")
    known = sample["valid"]
    return np.abs(prediction.depth_m[known] / sample["depth_m"][known] - 1), prediction.uncertainty[known]


def of_images(predictor: Predictor, steps: int, seed: int) -> Reading:
    """Reads the map of one image."""

    def read(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
        (found,) = predictor(sample["image"], [sample["id"]], num_inference_steps=steps, seed=seed)
        if found.uncertainty is None:
            raise ValueError(f"the model gives no uncertainty at {steps} step(s); ask for more with --steps")
        return *errors_of(found, sample), found.uncertainty_kind

    return read


def of_surround(model: Any, processor: Any, steps: int, seed: int) -> Reading:
    """Reads the bird's-eye view of one sample; a layer of a cell is wrong if 0.5 parts prediction and truth."""
    decoding = DecodingOptions(num_inference_steps=steps, seed=seed).resolved(model.config)

    def read(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
        found = predict_map(model, encode_sample(model, processor, sample), sample, decoding)
        wrong = ((found.probabilities > 0.5) != found.truth)[:, found.known]
        return wrong, found.uncertainty[:, found.known], found.uncertainty_kind

    return read


def measure(read: Reading, dataset: Any, knob: str, value: float, steps: int, seed: int = 0) -> dict[str, Any]:
    """Mean error and mean uncertainty at one value of a knob; images count alike."""
    samples = Redrawn(dataset, Ambiguity(**{knob: value}), seed)
    errors, uncertainties, kind = [], [], ""
    for index in range(len(samples)):
        error, uncertainty, kind = read(samples[index])
        errors.append(error.mean())
        uncertainties.append(uncertainty.mean())
    return {
        "knob": knob,
        "value": value,
        "images": len(samples),
        "steps": steps,
        "error": float(np.mean(errors)),
        "uncertainty": float(np.mean(uncertainties)),
        "kind": kind,
    }


def follows(rows: Sequence[dict[str, Any]]) -> float:
    """Rank correlation (Spearman) of error and uncertainty over the values of a knob; 1 is what one wants."""
    ranks = [np.argsort(np.argsort([row[name] for row in rows])) for name in ("error", "uncertainty")]
    return float(np.corrcoef(*ranks)[0, 1])


def measure_all(name: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model along every knob that was asked for."""
    model, processor = load_model(name, "cpu", kinds=("noise2map", "noise2map-bev"))
    surround = model.config.model_type == "noise2map-bev"
    if surround:
        shipped = chosen.surround is None
        root = SURROUND_SAMPLES_ROOT if shipped else chosen.surround
        whole: Any = open_bev_dataset("freedoom-surround", root, "test" if shipped else chosen.split, model, processor)
        read = of_surround(model, processor, chosen.steps, 0)
    else:
        shipped = chosen.root is None
        whole = load_samples("test", "both") if shipped else FreedoomDataset(chosen.root, "both")
        read = of_images(Predictor(model, processor), chosen.steps, 0)
    dataset = Subset.evenly_spaced(whole, chosen.limit)
    kind = "freedoom-surround" if surround else "freedoom"
    facts = {"model": Path(name).name if shipped else name, "dataset": "samples" if shipped else kind}
    rows = []
    for knob in chosen.knobs:
        if (knob in IMAGE_KNOBS and surround) or (knob == "cameras" and not surround):
            continue
        values = tqdm(DIAL[knob], desc=f"{name}, {knob}", disable=None)
        found = [facts | measure(read, dataset, knob, value, chosen.steps) for value in values]
        made = provenance(model.device, model.dtype, 0) | {"command": shlex.join(["python", *sys.argv])}
        rows += [row | {"follows": follows(found)} | made for row in found]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shipped names or folders of checkpoints")
    parser.add_argument("--root", type=Path, help="a rendered split; by default the shipped test frames")
    parser.add_argument("--surround", type=Path, help="a rendered surround set; by default the shipped samples")
    parser.add_argument("--split", default="val", help="split of the surround set")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--knobs", nargs="+", choices=list(DIAL), default=list(DIAL))
    parser.add_argument("--out", type=Path, help="table; rows of other models that it holds already are kept")
    chosen = parser.parse_args(arguments)
    rows = [row for name in chosen.models for row in measure_all(name, chosen)]
    print(text_table(rows))
    if chosen.out is not None:
        fresh = {row["model"] for row in rows}
        kept = [row for row in read_csv(chosen.out) if row["model"] not in fresh] if chosen.out.is_file() else []
        write_csv(chosen.out, kept + rows)


if __name__ == "__main__":
    main()
