"""A trained generator, its depth predictor and its depth prior -> one folder of the zoo.

Weights are rounded to half precision in the files; everything loads and runs in float32. What is written is the folder of a
`DepthGuidedPipeline` with `camera.json`, which `--model NAME` and `DepthGuidedPipeline.from_pretrained(zoo_path(NAME))` take.
Scores in the card are those of the shipped files.

    python benchmarks/ship_generator.py runs/freedoom-generator-64/final freedoom-generator-64 \
        --depth-predictor runs/freedoom-depth-predictor/final --depth-prior runs/freedoom-depth-prior/final \
        --convention plain --reduction mean
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import load
from ship_checkpoint import ZOO, replaced_folder, save_half

from noise2map.generation.loading import CAMERA_FILE, load_generator
from noise2map.guidance import DepthGuidedPipeline

PARTS = ("unet", "depth_predictor", "depth_prior")
# Megabytes that the package has for them.
BUDGETS_MB = {("unet",): 16.0, ("depth_predictor", "depth_prior"): 8.0}


def ship(
    source: Path,
    predictor: Path,
    prior: Path,
    target: Path,
    convention: str = "variance",
    reduction: str = "sum",
    seeds: int = 4,
    steps: int = 10,
) -> list[str]:
    """Writes the folder ``target`` whole or not at all; keeps its card. Returns what to tell: sizes, and what rounding changes.

    ``convention`` and ``reduction`` are what a scale means where a user does not say.
    """
    if not (source / CAMERA_FILE).is_file():
        raise FileNotFoundError(f"{source} has no {CAMERA_FILE}; expected the camera of the pictures it was trained on")
    exact = load_generator(source, predictor, prior, sampler="ddpm")
    exact = DepthGuidedPipeline(**exact.components, convention=convention, reduction=reduction)
    exact.set_progress_bar_config(disable=True)
    with replaced_folder(target) as folder:
        exact.save_pretrained(folder)
        counts = {part: _halve(folder / part) for part in PARTS}
        for path in folder.rglob("*.json"):
            path.write_text(json.dumps(_without_paths(json.loads(path.read_text())), indent=2) + "\n")
        shutil.copy(source / CAMERA_FILE, folder)
        lines = [f"{part}: {counts[part]:,} weights, {_megabytes(folder / part):.1f} MB" for part in PARTS]
        for parts, limit in BUDGETS_MB.items():
            size = sum(_megabytes(folder / part) for part in parts)
            if size >= limit:
                raise ValueError(f"{' and '.join(parts)} take {size:.1f} MB; expected less than {limit:g}")
        lines += rounding(exact, load_generator(folder, sampler="ddpm"), seeds, steps)
    return lines


def _halve(folder: Path) -> int:
    (path,) = folder.glob("*.safetensors")
    return save_half(load(path.read_bytes()), path)


def _without_paths(value: Any) -> Any:
    """A configuration without the folder that diffusers records it was loaded from."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items() if key != "_name_or_path"}
    return [_without_paths(one) for one in value] if isinstance(value, list) else value


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def rounding(exact: DepthGuidedPipeline, rounded: DepthGuidedPipeline, seeds: int, steps: int) -> list[str]:
    """How far samples of equal seeds are from each other, with the weights as trained and as shipped."""
    lines = []
    for name, scale in (("unguided", 0.0), ("guided by both at 40", 40.0)):
        pictures = [
            pipe(
                batch_size=seeds,
                generator=[torch.Generator().manual_seed(seed) for seed in range(seeds)],
                num_inference_steps=steps,
                consistency_scale=scale,
                prior_scale=scale,
                on_nonfinite="skip",
                output_type="np",
            ).images
            for pipe in (exact, rounded)
        ]
        difference = 255 * np.abs(pictures[0] - pictures[1])
        lines.append(
            f"half precision, {seeds} seeds, {steps} steps, {name}: differs by {difference.mean():.2f} of 255 grey levels on "
            f"average, {difference.max():.0f} at most"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the generator, e.g. RUN/final")
    parser.add_argument("name")
    parser.add_argument("--depth-predictor", type=Path, required=True)
    parser.add_argument("--depth-prior", type=Path, required=True)
    parser.add_argument("--convention", default="variance", help="what a scale means by default")
    parser.add_argument("--reduction", default="sum", help="of the losses over pixels by default")
    options = parser.parse_args()
    diffusers.utils.logging.disable_progress_bar()
    parts = (options.source, options.depth_predictor, options.depth_prior)
    report = ship(*parts, ZOO / options.name, options.convention, options.reduction)
    loaded = load_generator(options.name)  # by its name, as users will
    kinds = {weight.dtype for part in PARTS for weight in getattr(loaded, part).parameters()}
    if kinds != {torch.float32}:
        raise SystemExit(f"{options.name} loads in {kinds}; expected float32")
    print("\n".join([str(ZOO / options.name), *report]))
