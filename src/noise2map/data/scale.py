"""A quick look at the scale of a depth data set before it is trained or scored on."""

from typing import Any

from noise2map.data.check import check_dataset, scale_warning
from noise2map.data.opening import PUBLIC_DATASETS

_LOOKED_AT = 8


def warn_of_scale(dataset: Any, name: str) -> str | None:
    """Reads a few samples of a public depth data set; says what is odd about its scale, or nothing.

    Args:
        dataset: The opened data set.
        name: A key of ``PUBLIC_DATASETS``; of any other nothing is known.
    """
    kind = PUBLIC_DATASETS.get(name)
    if kind is None or kind.depth_median_m is None or not len(dataset):
        return None
    report = check_dataset(dataset, kind.title, limit=_LOOKED_AT)
    text = scale_warning(report, kind.depth_median_m, kind.units_per_metre)
    return None if text is None else f"{kind.title}: {text}"
