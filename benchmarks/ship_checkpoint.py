"""A finished training run -> a small checkpoint of the zoo.

The auxiliary head (training only) is left out and the weights are rounded to half precision in the file; ``config.json`` asks for
float32, so models load and run in float32. Scores in the cards are those of the shipped files.

    python benchmarks/ship_checkpoint.py runs/freedoom-segmentation-tiny/final freedoom-segmentation-tiny

Models whose decoders were trained on one frozen encoder share its weights: ``--encoder NAME`` keeps them once, in
``zoo/encoders/NAME.safetensors``, and each model's folder names that file in its index. ``from_pretrained`` of the folder loads as
ever; a copy of the folder elsewhere needs the file, too, or is made by ``save_pretrained``.

    python benchmarks/ship_checkpoint.py runs/depth-laplace/final freedoom-depth-laplace-tiny --encoder freedoom-joint-encoder

A model that is in the zoo already gives its encoder away in the same manner: its own folder is the source.

    python benchmarks/ship_checkpoint.py src/noise2map/zoo/NAME NAME --encoder freedoom-segmentation-encoder
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from noise2map.runs.files import temporary_path, writing_directory

ZOO = Path(__file__).parent.parent / "src" / "noise2map" / "zoo"
CARD = "README.md"
INDEX = "model.safetensors.index.json"
OWN_WEIGHTS = "model-own.safetensors"


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


def load_weights(source: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, by its index where it has one."""
    index = source / INDEX
    if not index.exists():
        return load_file(source / "model.safetensors")
    names = json.loads(index.read_text())["weight_map"]
    parts = {file: load_file(source / file) for file in set(names.values())}
    return {name: parts[file][name] for name, file in names.items()}


def share_encoder(weights: dict[str, torch.Tensor], shared: Path) -> dict[str, torch.Tensor]:
    """Puts the weights of the encoder into a file of their own, or checks that it holds the same; returns those weights.

    Raises:
        ValueError: if the file holds another encoder.
    """
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    if not shared.exists():
        shared.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(shared)
        save_half(encoder, temporary)
        temporary.replace(shared)
        return encoder
    there = load_file(shared)
    other = [name for name in sorted({*there, *encoder}) if name not in there or name not in encoder]
    other += [name for name in there if name in encoder and not torch.equal(there[name], encoder[name].to(there[name].dtype))]
    if other:
        raise ValueError(f"{shared} holds another encoder: {len(other)} weights differ, such as {other[0]}")
    return encoder


def write_index(folder: Path, target: Path, own: dict[str, torch.Tensor], encoder: dict[str, torch.Tensor], shared: Path) -> None:
    """The index that sends ``from_pretrained`` to two files; it names the shared one's content, so that a change is seen."""
    place = Path(os.path.relpath(shared, target)).as_posix()
    total = sum(2 * tensor.numel() for tensor in (*own.values(), *encoder.values()))
    index = {
        "metadata": {"total_size": total, "shared_sha256": hashlib.sha256(shared.read_bytes()).hexdigest()},
        "weight_map": dict.fromkeys(own, OWN_WEIGHTS) | dict.fromkeys(encoder, place),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def ship(source: Path, target: Path, shared: Path | None = None) -> int:
    """Writes the folder ``target`` whole or not at all; keeps its card.

    Args:
        source: folder of the exported model; may be ``target`` itself.
        target: folder of the zoo.
        shared: file of the encoder that several models have in common.

    Returns:
        The number of weights in the folder itself.

    Raises:
        ValueError: if a weight is beyond half precision, or ``shared`` holds another encoder.
    """
    weights = load_weights(source)
    config = json.loads((source / "config.json").read_text())
    config |= {"dtype": "float32", "use_auxiliary_head": False}
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("auxiliary_head.")}
    encoder = {} if shared is None else share_encoder(own, shared)
    own = {name: tensor for name, tensor in own.items() if name not in encoder}
    with replaced_folder(target) as folder:
        if shared is not None:
            write_index(folder, target, own, encoder, shared)
        count = save_half(own, folder / ("model.safetensors" if shared is None else OWN_WEIGHTS))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copy(source / "preprocessor_config.json", folder)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("name")
    parser.add_argument("--encoder", help="name of the file in zoo/encoders that keeps the encoder's weights")
    options = parser.parse_args()
    destination = ZOO / options.name
    count = ship(options.source, destination, ZOO / "encoders" / f"{options.encoder}.safetensors" if options.encoder else None)
    size = sum(path.stat().st_size for path in destination.glob("*.safetensors")) / 1e6
    print(f"{destination}: {count:,} weights, {size:.1f} MB")
