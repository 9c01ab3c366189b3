"""Published test protocols and published scores, by dataset."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from noise2map.data.evaluation_crops import SUN_RGBD_FARTHEST_M
from noise2map.data.opening import DATASETS
from noise2map.data.subsets import Cropped
from noise2map.evaluation.test_time import SCALES, TestTimeAugmentation
from noise2map.report.tables import text_table
from noise2map.tasks import get_task

LOOKS = ("flip", "multi-scale")  # protocols that look at an image several times, whatever the dataset
PROTOCOLS = ("plain", "official", *LOOKS)


@dataclass(frozen=True)
class TestProtocol:
    """Test protocol of a model on a dataset.

    Attributes:
        name: For the table.
        views: Sizes, mirror images and windows in which images are seen.
        depth_range_m: Depths that count, metres; None leaves it to the model.
        farthest_m: Predictions beyond are set to this, metres; None for the model's own range.
    """

    __test__ = False  # for pytest, which takes the name for that of tests

    name: str
    views: TestTimeAugmentation
    depth_range_m: tuple[float, float] | None = None
    farthest_m: float | None = None


_DEPTH = TestTimeAugmentation(own_size=True, flip=True)

_OFFICIAL = {
    "ade20k": TestProtocol("official", TestTimeAugmentation(frame=(2048, 512))),
    "cityscapes": TestProtocol("official", TestTimeAugmentation(frame=(2048, 1024))),
    "kitti": TestProtocol("official, Garg crop", _DEPTH, (1e-3, 80.0)),
    "nyu": TestProtocol("official, Eigen crop", _DEPTH, (1e-3, 10.0)),
    "nyu-labelled": TestProtocol("official, Eigen crop", _DEPTH, (1e-3, 10.0)),
    "sun-rgbd": TestProtocol("official, Eigen crop", _DEPTH, (1e-3, 10.0), SUN_RGBD_FARTHEST_M),
}


def find_protocol(
    dataset: str, task: str, protocol: str = "plain", window: tuple[int, int] | None = None, stride: tuple[int, int] | None = None
) -> TestProtocol:
    """The test protocol of a dataset.

    Args:
        dataset: Name of the dataset.
        task: Name of the task.
        protocol: ``"plain"`` (the model's image processor decides the size), ``"flip"`` (the mean with the map of the mirror
            image), ``"official"`` (as published for this dataset) or ``"multi-scale"`` (six scales, mirrored, class
            probabilities averaged).
        window: Height and width of sliding windows, pixels.
        stride: Their distance, pixels; by default two thirds of the window.

    Raises:
        ValueError: If the protocol is unknown or there is none for the dataset or the task.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if stride is not None and window is None:
        raise ValueError("a stride needs a window")
    if protocol == "official" and dataset not in _OFFICIAL:
        raise ValueError(f"there is no official protocol for {dataset!r}; there is one for {', '.join(_OFFICIAL)}")
    if protocol == "multi-scale" and not get_task(task).crops_allowed:
        raise ValueError(f"{task} is not tested at several scales: a scaled image shows another focal length, not another distance")
    plain = TestProtocol("plain", TestTimeAugmentation())
    base = plain if protocol in ("plain", "flip") else _OFFICIAL.get(dataset, TestProtocol("", TestTimeAugmentation()))
    views = replace(base.views, window=window, stride=stride)
    if protocol == "multi-scale":
        views = replace(views, scales=SCALES, flip=True)
    elif protocol == "flip":
        views = replace(views, flip=True)
    name = base.name if protocol == "official" else protocol
    return replace(base, name=f"{name}: {views.name}", views=views)


def apply_crop(data: Any, dataset: str, protocol: str) -> Any:
    """The dataset cut and masked as its official protocol asks; as it is for the other protocols."""
    view = DATASETS[dataset].evaluation_crop if protocol == "official" else None
    return data if view is None else Cropped(data, view)


_WIDTHS = {"swin": {96: "t", 128: "b", 192: "l"}, "convnext": {96: "t", 128: "b", 192: "l"}}

_DEEP = 18  # blocks of the third stage from which the narrow backbone is the small one, not the tiny one

_PERCENT = ("mIoU", "mIoU_max")

BEV_SAMPLES = {"camera": 5, "camera+lidar": 4}  # noise samples of the published bird's-eye-view scores


@lru_cache(maxsize=1)
def published_scores() -> tuple[dict[str, str], ...]:
    """All published scores as rows of text: dataset, backbone, self_aligned, protocol, steps, average, score, value."""
    text = resources.files("noise2map.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
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
        dataset: Name of the dataset.
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
    """Numbers of images of the measured and of the published score, as text."""
    measured, released = row.get("images"), row.get("released_images")
    if measured is None or released is None or measured == released:
        return "all" if measured is None else f"all {measured}"
    return f"{measured}, published: {released}"
