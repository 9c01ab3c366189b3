"""A finished training run -> a small checkpoint of the zoo.

The auxiliary head (training only) is left out and the weights are rounded to half precision in the file; ``config.json`` asks for
float32, so models load and run in float32. Scores in the cards are those of the shipped files.

    python benchmarks/ship_checkpoint.py runs/freedoom-segmentation-tiny/final freedoom-segmentation-tiny
"""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from noise2map.runs.files import writing_directory

ZOO = Path(__file__).parent.parent / "src" / "noise2map" / "zoo"
CARD = "README.md"


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill that takes the place of ``target``, with its card, if nothing goes wrong; else ``target`` stays."""
    with writing_directory(target) as folder:
        yield folder
        if (target / CARD).exists():
            shutil.copy(target / CARD, folder)


def save_half(weights: dict[str, torch.Tensor], path: Path) -> int:
    """Weights rounded to half precision -> ``path``, as safetensors. Returns their number."""
    kept = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    overflow = [name for name, tensor in kept.items() if not torch.isfinite(tensor).all()]
    if overflow:
        raise ValueError(f"weights beyond half precision: {overflow[:3]}")
    save_file(kept, path, metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in kept.values())


def ship(source: Path, target: Path) -> int:
    """Writes the folder ``target`` whole or not at all; keeps its card. Returns the number of weights."""
    weights = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config |= {"dtype": "float32", "use_auxiliary_head": False}
    with replaced_folder(target) as folder:
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("auxiliary_head.")}
        count = save_half(kept, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copy(source / "preprocessor_config.json", folder)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    destination = ZOO / options.name
    count = ship(options.source, destination)
    size = (destination / "model.safetensors").stat().st_size / 1e6
    print(f"{destination}: {count:,} weights, {size:.1f} MB")
