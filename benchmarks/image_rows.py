"""One row for each folder of drawn images, the same seeds below each other.

python benchmarks/image_rows.py out/rows/samples/unguided_* out/rows/samples/consistency-* --out docs/broken_layouts.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.report.panels import image_grid


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="from top to bottom")
    parser.add_argument("--first", type=int, default=0, help="seed of the first column")
    parser.add_argument("--columns", type=int, default=14)
    parser.add_argument("--enlarge", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    names = [f"{seed:06d}.png" for seed in range(options.first, options.first + options.columns)]
    rows = [[np.asarray(Image.open(folder / name).convert("RGB")) for name in names] for folder in options.folders]
    grid = image_grid([[image.repeat(options.enlarge, 0).repeat(options.enlarge, 1) for image in row] for row in rows])
    grid.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
