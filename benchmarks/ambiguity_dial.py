"""Does the uncertainty of a model follow its error when less and less can be told? Samples along the dial of `Ambiguity`.

    python benchmarks/ambiguity_dial.py freedoom-segmentation-tiny freedoom-depth-laplace-tiny --out results/ambiguity.csv
    python benchmarks/ambiguity_dial.py runs/completion/final --root data/freedoom/test --limit 200

One row for each model, knob and value: the mean error (share of wrong pixels, or relative error of depth), and the mean of the
uncertainty that the model gives by default. Places that are covered depend on the sample alone; larger ones contain the smaller.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from noise2map.data import load_samples
from noise2map.data.freedoom import FreedoomDataset
from noise2map.data.subsets import Redrawn, Subset
from noise2map.data.transforms import Ambiguity
from noise2map.inference import Predictor
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

DIAL: dict[str, tuple[float, ...]] = {
    "hide_share": (0.0, 0.15, 0.3, 0.45, 0.6, 0.75),
    "darkness": (0.0, 0.5, 0.7, 0.8, 0.9, 0.95),
    "zoom": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
}


def error_of(prediction: Any, sample: dict[str, Any]) -> np.ndarray:
    """Error of each pixel whose truth is known: wrong or not, or the relative error of depth."""
    if prediction.labels is not None:
        known = sample["labels"] != 255
        return (prediction.labels != sample["labels"])[known].astype(float)
    if prediction.depth_m is None:
        raise ValueError(f"{prediction.task} maps have no error here; expected a model of classes or depth")
    return np.abs(prediction.depth_m / np.where(sample["valid"], sample["depth_m"], 1) - 1)[sample["valid"]]


def measure(predictor: Predictor, dataset: Any, knob: str, value: float, steps: int, seed: int = 0) -> dict[str, Any]:
    """Mean error and mean uncertainty at one value of a knob; images count alike."""
    samples = Redrawn(dataset, Ambiguity(**{knob: value}), seed)
    errors, uncertainties, kind = [], [], ""
    for index in range(len(samples)):
        sample = samples[index]
        (found,) = predictor(sample["image"], [sample["id"]], num_inference_steps=steps, seed=seed)
        if found.uncertainty is None:
            raise ValueError(f"the model gives no uncertainty at {steps} step(s); ask for more with --steps")
        errors.append(error_of(found, sample).mean())
        uncertainties.append(found.uncertainty.mean())
        kind = found.uncertainty_kind
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shipped names or folders of checkpoints")
    parser.add_argument("--root", type=Path, help="a rendered split; by default the shipped test frames")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--knobs", nargs="+", choices=list(DIAL), default=list(DIAL))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    whole = load_samples("test", "both") if chosen.root is None else FreedoomDataset(chosen.root, "both")
    dataset, rows = Subset.evenly_spaced(whole, chosen.limit), []
    for name in chosen.models:
        predictor = Predictor.from_pretrained(name, "cpu")
        facts = {
            "model": Path(name).name if chosen.root is None else name,
            "dataset": "samples" if chosen.root is None else "freedoom",
        }
        for knob in chosen.knobs:
            values = tqdm(DIAL[knob], desc=f"{name}, {knob}", disable=None)
            found = [facts | measure(predictor, dataset, knob, value, chosen.steps) for value in values]
            rows += [row | {"follows": follows(found)} for row in found]
    print(text_table(rows))
    if chosen.out is not None:
        write_csv(chosen.out, [row | provenance(predictor.model.device, predictor.model.dtype, 0) for row in rows])


if __name__ == "__main__":
    main()
