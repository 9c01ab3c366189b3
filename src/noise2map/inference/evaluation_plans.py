"""The published test protocols by data set: how pictures are looked at, which pixels count, in which range."""

from dataclasses import dataclass, replace
from typing import Any

from noise2map.data.evaluation_views import EVALUATION_VIEWS, SUN_RGBD_FARTHEST_M
from noise2map.data.subsets import Cropped
from noise2map.inference.views import SCALES, ViewPlan

PROTOCOLS = ("plain", "official", "multi-scale")


@dataclass(frozen=True)
class EvaluationPlan:
    """How a model is tested on a data set.

    Attributes:
        name: For the table.
        views: How pictures are looked at.
        depth_range_m: Depths that count, metres; None leaves it to the model.
        farthest_m: Predictions beyond are set to this, metres; None for the model's own range.
    """

    name: str
    views: ViewPlan
    depth_range_m: tuple[float, float] | None = None
    farthest_m: float | None = None


_DEPTH = ViewPlan(own_size=True, flip=True)
_OFFICIAL = {
    "ade20k": EvaluationPlan("official", ViewPlan(frame=(2048, 512))),
    "cityscapes": EvaluationPlan("official", ViewPlan(frame=(2048, 1024))),
    "kitti": EvaluationPlan("official, Garg crop", _DEPTH, (1e-3, 80.0)),
    "nyu": EvaluationPlan("official, Eigen crop", _DEPTH, (1e-3, 10.0)),
    "nyu-labelled": EvaluationPlan("official, Eigen crop", _DEPTH, (1e-3, 10.0)),
    "sun-rgbd": EvaluationPlan("official, Eigen crop", _DEPTH, (1e-3, 10.0), SUN_RGBD_FARTHEST_M),
}


def evaluation_plan(
    dataset: str, task: str, protocol: str = "plain", window: tuple[int, int] | None = None, stride: tuple[int, int] | None = None
) -> EvaluationPlan:
    """The plan of a data set.

    Args:
        dataset: Name of the data set.
        task: ``"segmentation"`` or ``"depth"``.
        protocol: ``"plain"`` (the model's image processor decides the size), ``"official"`` (as published for this data set) or
            ``"multi-scale"`` (six scales, mirrored, class probabilities averaged).
        window: Height and width of sliding windows, pixels.
        stride: Their distance, pixels; by default two thirds of the window.

    Raises:
        ValueError: If the protocol is unknown or there is none for the data set or the task.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if stride is not None and window is None:
        raise ValueError("a stride needs a window")
    if protocol == "official" and dataset not in _OFFICIAL:
        raise ValueError(f"there is no official protocol for {dataset!r}; there is one for {', '.join(_OFFICIAL)}")
    if protocol == "multi-scale" and task == "depth":
        raise ValueError("depth is not tested at several scales: a scaled picture shows another focal length, not another distance")
    base = _OFFICIAL.get(dataset, EvaluationPlan("", ViewPlan())) if protocol != "plain" else EvaluationPlan("plain", ViewPlan())
    views = replace(base.views, window=window, stride=stride)
    if protocol == "multi-scale":
        views = replace(views, scales=SCALES, flip=True)
    name = "multi-scale" if protocol == "multi-scale" else base.name
    return replace(base, name=f"{name}: {views.name}", views=views)


def look_at(data: Any, dataset: str, protocol: str) -> Any:
    """The data set cut and masked as its official protocol asks; as it is for the other protocols."""
    view = EVALUATION_VIEWS.get(dataset) if protocol == "official" else None
    return data if view is None else Cropped(data, view)
