"""How often ten steps draw what is true in six of ten parts of a map, by the size of the parts and the scale of the map.

A world of three classes (60, 30 and 10 % of all squares) in which all cells of a square are of one class, and its exact denoiser.
The mean of a square's cells says all that its noisy cells say, so a square of n x n cells is one cell at n times the scale.

    python benchmarks/toy_parts.py --out results/toy_parts.csv
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from noise2map.codecs import OneHotCodec
from noise2map.diffusion.sampling import ddim_steps, time_pairs
from noise2map.diffusion.schedule import make_schedule
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.provenance import provenance

PRIOR = torch.tensor([0.6, 0.3, 0.1])


def share_of_the_first(scale: float, side: int, steps: int, squares: int, seed: int) -> float:
    """Share of the squares that a run draws as the first class."""
    schedule, codes = make_schedule("cosine"), OneHotCodec(len(PRIOR), scale * side).codes()[: len(PRIOR)]

    def denoise(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (level[0] for level in schedule.alpha_sigma(t))
        evidence = torch.einsum("nkhw,ck->nchw", x_t, codes) * alpha / sigma**2
        logits = PRIOR.log().view(1, -1, 1, 1) + (evidence if t[0] < 1 else 0 * evidence)
        return torch.einsum("nchw,ck->nkhw", logits.softmax(1), codes), logits

    noise = torch.randn(1, len(PRIOR), squares, 1, generator=torch.Generator().manual_seed(seed))
    *_, last = ddim_steps(denoise, noise, schedule, time_pairs(steps, 0.0))
    return (last.prediction.argmax(1) == 0).float().mean().item()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.2, 0.05])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--squares", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = provenance(torch.device("cpu"), torch.float32, options.seed) | {"command": shlex.join(["python", *sys.argv])}
    rows = [
        {
            "scale": scale,
            "steps": steps,
            "side": side,
            "share": share_of_the_first(scale, side, steps, options.squares, options.seed),
        }
        for scale in options.scales
        for steps in options.steps
        for side in options.sides
    ]
    print(text_table(rows, digits=3))
    if options.out:
        write_csv(options.out, [row | {"squares": options.squares} | facts for row in rows])


if __name__ == "__main__":
    main()
