"""Rows, intervals and files of the ablations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from noise2map.ablation.arms import PUBLISHED, Ablation, Arm, Decoding
from noise2map.ablation.plots import ablation_figure
from noise2map.metrics import Interval, bootstrap_intervals, paired_bootstrap_intervals, seed_interval, segmentation_scores
from noise2map.report.plots import save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import json_values, write_image

Row = dict[str, Any]

SCORES = ("mIoU", "aAcc")
"""Scores that get intervals."""

ALL_SEEDS = "all"
"""In the column ``seed`` of rows of means over seeds."""

_FURTHER = ("ece", "nll", "entropy_auroc", "step_flip_auroc", "step_flip_ause", "step_flip_mean_uncertainty")
_DIFFERENCE = "difference"


@dataclass(frozen=True)
class Scored:
    """A trained decoder and its scores.

    Attributes:
        arm: what it is.
        seed: of its training.
        folder: its run directory.
        found: row and counts of each image ``(N, 3, K)`` under each decoding.
    """

    arm: Arm
    seed: int
    folder: Path
    found: Mapping[Decoding, tuple[Row, Tensor]]


def reference(ablation: Ablation, arm: Arm, decoding: Decoding) -> tuple[str, Decoding]:
    """Arm and decoding that a score is compared with.

    Runs of several steps are compared with one step of the same decoder where steps are the question, with the checkpoint's time
    difference where that is; else with the published arm under the same decoding; decoders without steps with its longest run.
    """
    if ablation.name == "steps":
        return arm.name, Decoding(1)
    if ablation.name == "time-difference":
        return arm.name, Decoding(decoding.steps)
    single = not arm.has_steps
    return PUBLISHED, max(ablation.decodings) if single else decoding


def mean_over_seeds(rows: Tensor) -> Tensor:
    """Counts ``(N, S, 3, K)`` of S seeds -> `SCORES`, each the mean over seeds of the score of all images."""
    scores = segmentation_scores(rows.sum(0))
    return torch.stack([scores[name].mean() for name in SCORES])


@dataclass
class AblationReport:
    """What was found.

    Attributes:
        ablations: what was asked.
        scored: all trained decoders.
        facts: columns that are the same in all rows.
        resamples: bootstrap resamples.
        images: drawn maps, by the name of their file.
    """

    ablations: Sequence[Ablation]
    scored: Sequence[Scored]
    facts: Row
    resamples: int = 1000
    images: Mapping[str, Image.Image] = field(default_factory=dict)

    def rows(self, ablation: Ablation) -> list[Row]:
        """Rows of an ablation: of every arm and decoding one for each seed, and one for their mean, with differences."""
        found = []
        for place, arm in enumerate(ablation.arms):
            mine = [one for one in self.scored if one.arm.name == arm.name]
            for decoding in ablation.decodings if arm.has_steps else (Decoding(1),):
                facts: Row = {"ablation": ablation.name, "arm": arm.name, "label": arm.label}
                own = mine[0].found[decoding][0]
                difference = own["time_difference"] if decoding.time_difference is None else decoding.time_difference
                x = {"time-difference": difference, "steps": decoding.steps, "decoder": own["gflop"]}.get(ablation.name)
                facts["x"] = ablation.values[place] if ablation.values else x
                facts |= {"steps": decoding.steps, "time_difference": difference}
                for one in mine:
                    found.append({**facts, "seed": one.seed, **self._scores([one], decoding), **self.facts})
                mean = self._scores(mine, decoding) | self._difference(ablation, arm, decoding)
                found.append({**facts, "seed": ALL_SEEDS, **mean, **self.facts})
        return found

    def _scores(self, runs: Sequence[Scored], decoding: Decoding) -> Row:
        """Scores of the mean over runs: intervals over places (images where nobody says), of several runs also over seeds."""
        rows = [one.found[decoding][0] for one in runs]
        counts = torch.stack([one.found[decoding][1] for one in runs], 1)
        places = rows[0]["places"]
        intervals = bootstrap_intervals(counts, mean_over_seeds, self.resamples, clusters=places)
        result: Row = {"seeds": len(runs)}
        for name, interval in zip(SCORES, intervals):
            result |= _interval(name, interval)
            if len(runs) > 1:
                over_seeds = seed_interval(torch.tensor([row[name] for row in rows], dtype=torch.float64))
                result |= {f"{name}_seed_low": over_seeds.low, f"{name}_seed_high": over_seeds.high}
        for name in _FURTHER:
            values = [row[name] for row in rows if row.get(name) is not None]
            result[name] = sum(values) / len(values) if len(values) == len(rows) else None
        resampled = f"{len(set(places))} maps" if places else "images"
        return result | {
            "parameters": rows[0]["parameters"],
            "gflop": rows[0]["gflop"],
            "images": rows[0]["images"],
            "resampled": resampled,
        }

    def _difference(self, ablation: Ablation, arm: Arm, decoding: Decoding) -> Row:
        """Difference of mIoU to the reference, paired by seed and image."""
        name, other = reference(ablation, arm, decoding)
        if (name, other) == (arm.name, decoding):
            return {}
        mine = {one.seed: one.found[decoding] for one in self.scored if one.arm.name == arm.name}
        its = {one.seed: one.found[other] for one in self.scored if one.arm.name == name}
        seeds = sorted(mine.keys() & its.keys())
        if not seeds:
            return {}
        a, b = (torch.stack([found[seed][1] for seed in seeds], 1) for found in (mine, its))
        places = mine[seeds[0]][0]["places"]
        interval = paired_bootstrap_intervals(a, b, mean_over_seeds, self.resamples, clusters=places)[0]
        pairs = torch.tensor([mine[seed][0]["mIoU"] - its[seed][0]["mIoU"] for seed in seeds], dtype=torch.float64)
        over_seeds = seed_interval(pairs)
        return {
            "minus": f"{name}, {other.key}",
            **_interval(_DIFFERENCE, interval),
            f"{_DIFFERENCE}_seed_low": over_seeds.low,
            f"{_DIFFERENCE}_seed_high": over_seeds.high,
            "certain": interval.excludes_zero() and (over_seeds.excludes_zero() or len(seeds) == 1),
        }

    def text(self) -> list[str]:
        """A table for each ablation, of means over seeds in per cent."""
        return [f"{one.title}\n{text_table(summary(self.rows(one)), digits=3)}" for one in self.ablations]

    def write(self, out: Path) -> list[Path]:
        """Write ``ablation_NAME.csv`` and ``ablation_NAME.png`` of each ablation, and the drawn maps.

        Raises:
            OSError: If a file cannot be written.
        """
        paths = []
        for ablation in self.ablations:
            rows, name = self.rows(ablation), ablation.name.replace("-", "_")
            paths += [out / f"ablation_{name}.csv", out / f"ablation_{name}.png"]
            write_csv(paths[-2], json_values(rows))
            save_figure(paths[-1], ablation_figure(ablation, rows))
        for name, image in self.images.items():
            paths.append(out / f"{name}.png")
            write_image(paths[-1], image)
        return paths


def summary(rows: Sequence[Row]) -> list[Row]:
    """Lines of a table from the rows of an ablation, or of its CSV file: means over seeds, in per cent."""
    lines = []
    for row in rows:
        if row["seed"] != ALL_SEEDS:
            continue
        label = row["label"]
        line = {
            "arm": label if isinstance(label, str) else f"{label:g}",
            "steps": row["steps"],
        }  # a file knows no text from numbers
        if row["ablation"] == "time-difference":
            line["time difference"] = f"{row['time_difference']:g}"
        line |= {"trainings": row["seeds"], f"mIoU % [over {row['resampled']}]": _percent(row, "mIoU")}
        line["over seeds"] = _half_width(row, "mIoU")
        line["minus reference"] = _percent(row, _DIFFERENCE)
        line["its ± over seeds"] = _half_width(row, _DIFFERENCE)
        if row["ablation"] == "steps":
            for kind, title in (("step_flip", "changes"), ("entropy", "entropy")):
                value = row.get(f"{kind}_auroc")
                line[f"error AUROC of {title}"] = "" if value is None else f"{value:.3f}"
        lines.append(line | {"GFLOP": f"{row['gflop']:.2f}", "parameters": f"{row['parameters'] / 1e6:.2f} M"})
    return lines


def _half_width(row: Row, name: str) -> str:
    low, high = row.get(f"{name}_seed_low"), row.get(f"{name}_seed_high")
    return "" if low is None or high is None or low != low else f"± {50 * (high - low):.1f}"


def _interval(name: str, interval: Interval) -> Row:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _percent(row: Row, name: str) -> str:
    if row.get(name) is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    sign = "+" if name == _DIFFERENCE else ""
    return f"{100 * row[name]:{sign}.1f}" + ("" if low != low else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]")
