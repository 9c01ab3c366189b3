"""What sparse refinement loses: later steps on a share of the tokens, the most uncertain ones or any, and fewer steps.

    noise2map data freedoom --split test --frames 1080 --supersample 4 --out rooms
    python benchmarks/refine.py --data rooms --out results/refine.csv
    python benchmarks/refine.py --data rooms --out results/refine.csv --shares --thresholds 0.5 0.3 0.1

Frames of each map, 3 steps: all tokens, the share of them that the first step is least sure of, and as a control the same share
drawn at random; as the other control 2 steps and 1 step of all tokens. Completion sees frames with a part covered and takes the
mean of several samples. With thresholds, the tokens of at least such an uncertainty: their mean share is counted, and the controls
and the rows of whole runs are left out. Differences to the run of all tokens are paired, with percentile-bootstrap intervals over
maps.
"""

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from noise2map.data.freedoom.dataset import open_rendered
from noise2map.data.subsets import Redrawn, Subset, evenly_spaced
from noise2map.data.transforms import Hide
from noise2map.evaluation.evaluate import evaluate_model
from noise2map.inference.loading import load_model
from noise2map.metrics.intervals import paired_bootstrap_intervals
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import merge_rows, text_table
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of

MODELS = ("freedoom-segmentation-tiny", "freedoom-completion-tiny")  # shipped depth and normals take one step
SHARES = (0.5, 0.3, 0.2, 0.1)
SAMPLES = 4  # of completion: one says little of what is covered
WANTED = ("mIoU", "aAcc", "abs_rel", "delta1", "nll")


def frames(data: str, task: str, covered: bool, of_each: int) -> Any:
    """Evenly spaced frames of each map, as many of each."""
    whole = open_rendered(data, task=task)
    places = defaultdict(list)
    for number, line in enumerate(whole.records):
        places[line["map"]].append(number)
    chosen = [own[one] for own in places.values() for one in evenly_spaced(len(own), min(of_each, len(own)))]
    some = Subset(whole, sorted(chosen))
    return Redrawn(some, Hide("rectangle"), 0) if covered else some


class CountingShares:
    """`MapModel.cell_uncertainty` that remembers the share of the cells of at least each threshold, and of how many maps."""

    def __init__(self, model: Any, thresholds: Sequence[float]) -> None:
        self._of = model.cell_uncertainty
        self._seen = {threshold: list[torch.Tensor]() for threshold in thresholds}
        model.cell_uncertainty = self

    def __call__(self, prediction: torch.Tensor) -> torch.Tensor:
        """Uncertainty ``(N, h, w)`` of a first step: the same, whatever threshold comes after."""
        uncertainty = self._of(prediction)
        for threshold, seen in self._seen.items():
            seen.append((uncertainty >= threshold).float().flatten(1).mean(1))
        return uncertainty

    def of(self, threshold: float) -> float:
        """Mean share over the maps."""
        return float(torch.cat(self._seen[threshold]).mean())


def run(
    name: str, data: str, of_each: int, resamples: int, shares: Sequence[float], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """One row for each way of decoding."""
    model, processor = load_model(name, "cpu")
    task, covered = task_of(model), "completion" in name
    dataset = frames(data, task.name, covered, of_each)
    maps = [dataset[index]["location"] for index in range(len(dataset))]
    chosen: dict[str, Any] = {"average": "last", "sampler": "ddim", "sampling": "diffusion"}
    chosen["ensemble_size"] = SAMPLES if covered else 1
    sparse = [DecodingOptions(num_inference_steps=3, refine="uncertain", refine_share=one, **chosen) for one in shares]
    above = [DecodingOptions(num_inference_steps=3, refine="uncertain", refine_threshold=one, **chosen) for one in thresholds]
    whole = [DecodingOptions(num_inference_steps=count, refine="all", **chosen) for count in ((3, 2, 1) if shares else (3,))]
    counted = CountingShares(model, thresholds)
    results = {"": evaluate_model(model, processor, dataset, [*whole, *sparse, *above]).results}
    if sparse:
        generator = torch.Generator().manual_seed(0)
        model.cell_uncertainty = lambda prediction: torch.rand(prediction[:, 0].shape, generator=generator)
        results["random"] = evaluate_model(model, processor, dataset, sparse).results
    first, rows = results[""][0].scorer, []
    for kind, found in results.items():
        for result in found:
            options, scores = result.protocol, result.scorer.scores()
            if options.refine == "all" and not shares:
                continue  # what the others are compared with; the run with shares has its row
            threshold = options.refine_threshold
            tokens = "all" if options.refine == "all" else kind or ("uncertain" if threshold is None else "above")
            row = {"model": name, "hide": "rectangle" if covered else "", "frames": len(dataset), "maps": len(set(maps))}
            row |= {"samples": options.ensemble_size, "steps": options.num_inference_steps, "tokens": tokens}
            row["share"] = options.refined_share if threshold is None else round(counted.of(threshold), 3)
            row["threshold"] = "" if threshold is None else threshold
            row |= {score: f"{scores[score]:.6f}" for score in WANTED if score in scores}
            pair = result.scorer.image_rows(), first.image_rows()
            intervals = paired_bootstrap_intervals(*pair, first.statistic(), resamples, clusters=maps)
            name_of_first = task.compared_scores[0]
            at = dict(zip(first.statistics, intervals))[name_of_first]
            row |= {"score": name_of_first, "change": f"{at.estimate:.6f}", "low": f"{at.low:.6f}", "high": f"{at.high:.6f}"}
            rows.append(row)
    return rows


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--of-each", type=int, default=20, help="frames of each map")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--thresholds", nargs="*", type=float, default=(), help="uncertainties, see MapModel.cell_uncertainty")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for name in arguments.models:
        rows = run(name, arguments.data, arguments.of_each, arguments.resamples, arguments.shares, arguments.thresholds)
        print(text_table(rows), flush=True)
        if arguments.out:
            facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
            merge_rows(arguments.out, [row | facts for row in rows], ("model", "steps", "tokens", "share"))


if __name__ == "__main__":
    main()
