"""Images of good texture and broken layout: center crops whose thirds, columns or rows, are put in a random order.

A generator trained on them draws surfaces as well as before and rooms that cannot be: the case in which guidance by depth has
something to mend. The folder is one of images, for ``noise2map train generator RECIPE --dataset folder``.

    python benchmarks/shuffle_thirds.py --from data/freedoom-rooms/train --out data/freedoom-thirds --copies 2
    python benchmarks/shuffle_thirds.py --from data/freedoom-rooms/train --out data/freedoom-rows --copies 2 --axis rows

Columns in another order keep the laws of rooms (floors stay below); rows do not. The order follows from
the seed, the number of the frame and the copy; one in six stays as it was.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.data.center_crop import CenterCrops
from noise2map.data.opening import open_dataset

AXES = {"rows": 0, "columns": 1}


def shuffled_thirds(image: np.ndarray, rng: np.random.Generator, axis: int = 1) -> np.ndarray:
    """The image ``(H, W, 3)`` with its columns (``axis=1``) or rows (``axis=0``) in thirds, the last takes the rest, at random."""
    side = image.shape[axis] // 3
    parts = np.split(image, [side, 2 * side], axis=axis)
    return np.concatenate([parts[index] for index in rng.permutation(3)], axis=axis)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="a rendered Freedoom split")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--copies", type=int, default=2, help="orders drawn for each image")
    parser.add_argument("--axis", choices=("columns", "rows"), default="columns", help="what is cut into thirds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True)
    crops = CenterCrops(open_dataset("freedoom", options.source, task="image"), options.size, ("image",))
    for index in range(len(crops)):
        image = np.asarray(crops[index]["image"])
        for copy in range(options.copies):
            rng = np.random.default_rng([options.seed, index, copy])
            Image.fromarray(shuffled_thirds(image, rng, AXES[options.axis])).save(out / f"{index:06d}-{copy}.png")
    print(f"{len(crops) * options.copies} images in {out}")


if __name__ == "__main__":
    main()
