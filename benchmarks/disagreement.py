"""Is there anything for consistency guidance to correct? How far two readings of depth disagree, by noise level.

Consistency guidance draws the weak reading of an image's depth towards the strong one. It can help where generated images disagree
more than real ones do. Real frames (of maps that the generator and its predictor have not seen, and of those they were trained on),
unguided images and guided ones are noised alike and read alike.

    python benchmarks/disagreement.py --references unseen=data/rooms/test --references trained=data/rooms/train \\
      --out results/disagreement.csv

Intervals are 95 % bootstrap over images. About a quarter of an hour on one core.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from noise2map.diffusion import tables_from_betas
from noise2map.generation.depth_reading import disagreement
from noise2map.generation.evaluation.references import ReferenceImages
from noise2map.generation.loading import load_generator, side_of
from noise2map.generation.sampling import SamplingOptions, draw
from noise2map.guidance import GuidanceConfig
from noise2map.metrics import bootstrap_interval
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

LEVELS = 5


def drawn_images(pipe, count: int, steps: int, scale: float, batch: int = 16) -> list[np.ndarray]:
    """Images of the first seeds, ``(H, W, 3)`` uint8, with consistency guidance of a scale or none."""
    found: list[np.ndarray] = []
    for start in range(0, count, batch):
        options = SamplingOptions(num_inference_steps=steps)
        part = draw(pipe, range(start, min(start + batch, count)), options, GuidanceConfig.from_scales(scale)).images
        found += list(part.permute(0, 2, 3, 1).numpy())
        print(f"scale {scale:g}: {len(found)} of {count} images", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="freedoom-generator-64")
    parser.add_argument("--references", action="append", required=True, metavar="NAME=IMAGES")
    parser.add_argument("--images", type=int, default=256, help="real images of each set")
    parser.add_argument("--samples", type=int, default=128, help="drawn images")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pipe = load_generator(arguments.model, timestep_spacing="trailing")
    last = tables_from_betas(pipe.scheduler.betas).last_step(pipe.depth_predictor.config.min_log_snr)
    sets = {}
    for word in arguments.references:
        name, _, images = word.partition("=")
        sets[f"real, {name}"] = ReferenceImages(images, side_of(pipe), arguments.images)
    for scale in arguments.scales:
        title = f"consistency, scale {scale:g}" if scale else "unguided"
        sets[f"{title}, {arguments.steps} steps"] = drawn_images(pipe, arguments.samples, arguments.steps, scale)
    facts = provenance(pipe.device, torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
    rows = []
    for name, images in sets.items():
        for level in range(LEVELS):
            timestep = round(last * level / (LEVELS - 1))
            values = disagreement(pipe, images, timestep)
            interval = bootstrap_interval(values)
            rows.append({"images": name, "count": len(values), "timestep": timestep, "disagreement": values.mean().item()})
            rows[-1] |= {"disagreement_low": interval.low, "disagreement_high": interval.high}
    print(text_table(rows, digits=4))
    if arguments.out:
        write_csv(arguments.out, [row | facts for row in rows])


if __name__ == "__main__":
    main()
