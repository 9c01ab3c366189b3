"""Connected components of a map, and pixels of a region as runs."""

from collections.abc import Sequence

import numpy as np


def connected_components(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the regions of equal keys that hang together by the sides of their pixels.

    The runs of every row are joined with those that touch them in the row below, by union-find on whole arrays.

    Args:
        keys: ``(H, W)`` integers; pixels below 0 belong to no region.

    Returns:
        ``(H, W)`` int64, 0 where there is no region, else 1, 2, ... in the order of each region's first pixel, and how many.
    """
    begins = np.ones(keys.shape, bool)
    begins[:, 1:] = keys[:, 1:] != keys[:, :-1]
    run = begins.ravel().cumsum().reshape(keys.shape) - 1
    touching = (keys[1:] == keys[:-1]) & (keys[1:] >= 0)
    above, below = np.unique(np.stack([run[:-1][touching], run[1:][touching]]), axis=1)
    root = np.arange(int(begins.sum()))
    while True:
        one, other = root[above], root[below]
        apart = one != other
        if not apart.any():
            break
        np.minimum.at(root, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while (root != root[root]).any():
            root = root[root]
    of_a_region = keys.ravel()[begins.ravel()] >= 0
    first, numbers = np.unique(root[of_a_region], return_inverse=True)
    number = np.zeros(len(root), np.int64)
    number[of_a_region] = numbers + 1
    return number[run], len(first)


def as_runs(places: np.ndarray) -> list[int]:
    """Ascending places in a flat map as start, length, start, length, ...; a run may go on in the next row."""
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    starts = places[np.concatenate([[0], breaks])]
    lengths = np.diff(np.concatenate([[0], breaks, [len(places)]]))
    return [int(number) for pair in zip(starts, lengths) for number in pair]


def mask_of(runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """The pixels ``(H, W)`` bool that `as_runs` wrote down."""
    mask = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(runs[::2], runs[1::2]):
        mask[start : start + length] = True
    return mask.reshape(shape)
