"""The published scores of the DDP models, found by what was evaluated."""

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from noise2map.report.tables import text_table

_WIDTHS = {"swin": {96: "t", 128: "b", 192: "l"}, "convnext": {96: "t", 128: "b", 192: "l"}}
_DEEP = 18  # blocks of the third stage from which the narrow backbone is the small one, not the tiny one
_PERCENT = ("mIoU", "mIoU_max")
BEV_SAMPLES = {"camera": 5, "camera+lidar": 4}  # noise samples of the published bird's-eye-view scores


@lru_cache(maxsize=1)
def published_scores() -> tuple[dict[str, str], ...]:
    """All published scores as rows of text: dataset, backbone, self_aligned, protocol, steps, average, score, value."""
    text = resources.files("noise2map.inference").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def backbone_name(config: Any) -> str | None:
    """``"swin-t"`` to ``"convnext-l"`` of a model's configuration; None for any other backbone."""
    backbone = config.backbone_config
    kind = backbone.model_type
    width = backbone.embed_dim if kind == "swin" else backbone.hidden_sizes[0] if kind == "convnext" else None
    letter = _WIDTHS.get(kind, {}).get(width)
    if letter == "t" and backbone.depths[2] >= _DEEP:
        letter = "s"
    return None if letter is None else f"{kind}-{letter}"


def sensors_name(config: Any) -> str:
    """``"camera"``, ``"lidar"`` or ``"camera+lidar"``."""
    return "+".join(sorted(config.sensors))


def published_for(config: Any, dataset: str, protocol: str, steps: int | str, samples: int, average: str) -> dict[str, float]:
    """The published scores of a model of this configuration under the same conditions; mIoU as a fraction.

    Args:
        config: The model's configuration.
        dataset: Name of the data set.
        protocol: ``"official"`` or ``"multi-scale"``.
        steps: Decoder calls.
        samples: Noise samples; the published scores are of one, on nuScenes of five (cameras) or four (with LiDAR).
        average: ``"last"`` or ``"steps"``; at one step both are the same.
    """
    wanted = {
        "dataset": "nyu" if dataset == "nyu-labelled" else dataset,
        "backbone": sensors_name(config) if dataset == "nuscenes" else backbone_name(config),
        "self_aligned": "yes" if config.self_aligned else "no",
        "protocol": protocol,
        "steps": str(steps),
    }
    found = {}
    usual = BEV_SAMPLES.get(sensors_name(config)) if dataset == "nuscenes" else 1
    for row in published_scores():
        same = all(row[name] == value for name, value in wanted.items())
        if same and samples == usual and (steps == 1 or row["average"] == average):
            found[row["score"]] = float(row["value"]) / (100 if row["score"] in _PERCENT else 1)
    return found


def published_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measured beside published scores as aligned text; empty if nothing was published for any of the rows."""
    shown = []
    for row in rows:
        for name in [key for key in row if key.startswith("published_") and row[key] is not None]:
            score = name.removeprefix("published_")
            factor = 100 if score in _PERCENT else 1
            measured, published = factor * row[score], factor * row[name]
            shown.append(
                {
                    "dials": row["protocol"],
                    "images": _images(row),
                    "score": f"{score} %" if factor == 100 else score,
                    "measured": measured,
                    "published": published,
                    "difference": f"{measured - published:+.4g}",
                }
            )
    return text_table(shown) if shown else ""


def _images(row: Mapping[str, Any]) -> str:
    """How many images the measured score is of, and how many the published one is."""
    measured, released = row.get("images"), row.get("released_images")
    if measured is None or released is None or measured == released:
        return "all" if measured is None else f"all {measured}"
    return f"{measured}, published: {released}"
