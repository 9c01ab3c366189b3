"""Small trained checkpoints that come with the package, found by name.

A model of maps is a folder with ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and a card, ``README.md``;
an image generator is the folder of a diffusers pipeline, with ``model_index.json``. Models of one encoder share its weights: they
lie in ``encoders/`` beside the models' folders, whose ``model.safetensors.index.json`` names them.

Names may be written ``zoo/NAME``, too.
"""

import difflib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOM = Path(__file__).parent

_PREFIX = "zoo/"

_PIPELINE = "model_index.json"

_INDEX = "model.safetensors.index.json"

_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json")

# Mark of a folder that noise2map export wrote, and what it holds in place of weights.
EXPORT_FILE = "export.json"

_GRAPHS = ("encoder", "step")

# End of an architecture's name -> task.
_TASKS = {
    "ForSemanticSegmentation": "segmentation",
    "ForDepthEstimation": "depth",
    "ForBevSegmentation": "bev",
    "ForNormalEstimation": "normals",
}

# Task -> what the hub calls it.
TASK_TAGS = {
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "normals": "image-to-image",
    "bev": "image-segmentation",
    "generation": "unconditional-image-generation",
}

# What a repository on the hub is called: owner/name.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

__all__ = [
    "TASK_TAGS",
    "ShippedModel",
    "ShippedNames",
    "available",
    "available_generators",
    "bare_name",
    "final_hint",
    "label_of",
    "named_files",
    "resolve_generator",
    "resolve_model",
    "shipped_folder",
    "shipped_models",
    "task_of_folder",
    "zoo_path",
]


@dataclass(frozen=True)
class ShippedModel:
    """A checkpoint that comes with the package, as its card describes it.

    Attributes:
        name: What commands call it.
        task: ``"segmentation"``, ``"depth"``, ``"bev"`` (bird's-eye view), ``"normals"`` or ``"generation"``.
        parameters: Weights, all parts of a generator together.
        megabytes: Of its weight files, a shared encoder included.
        score: One score, in words.
        limit: What it cannot do.
        card: Its card.
    """

    name: str
    task: str
    parameters: int
    megabytes: float
    score: str
    limit: str
    card: Path


def shipped_models() -> list[ShippedModel]:
    """All shipped checkpoints, models of maps first."""
    return [_describe(_ROOM / name) for name in (*available(), *available_generators())]


def _describe(folder: Path) -> ShippedModel:
    weights = sorted({*folder.rglob("*.safetensors"), *named_files(folder)})
    fields = _card_fields(folder / "README.md")
    return ShippedModel(
        folder.name,
        task_of_folder(folder),
        sum(map(_count_weights, weights)),
        sum(path.stat().st_size for path in weights) / 1e6,
        fields.get("score", "see the card"),
        fields.get("limit", "see the card"),
        folder / "README.md",
    )


def task_of_folder(folder: Path) -> str:
    """The task of a checkpoint: as in `ShippedModel`, or the name of an architecture that is not ours."""
    if (folder / _PIPELINE).is_file():
        return "generation"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = next(iter(config.get("architectures") or []), "")
    return next((task for ending, task in _TASKS.items() if architecture.endswith(ending)), architecture or "?")


def _count_weights(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def named_files(folder: Path) -> list[Path]:
    """The weight files that the index of a folder names, in the folder or beside it; none where there is no index."""
    index = folder / _INDEX
    if not index.is_file():
        return []
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} is no index of weights; expected JSON with a 'weight_map' from names to files")
    return [(folder / name).resolve() for name in sorted(set(files.values()))]


def _card_fields(card: Path) -> dict[str, str]:
    """The lines ``name: value`` between the two lines ``---`` at the top of a card."""
    if not card.is_file():
        return {}
    head = card.read_text(encoding="utf-8").split("\n---\n", 1)[0]
    pairs = (line.partition(": ") for line in head.splitlines()[1:])
    return {name: value.strip().strip('"') for name, colon, value in pairs if colon}


def available() -> list[str]:
    """The names of the shipped models of maps, in alphabetical order."""
    return sorted(path.parent.name for path in _ROOM.glob("*/config.json"))


def available_generators() -> list[str]:
    """The names of the shipped image generators, in alphabetical order."""
    return sorted(path.parent.name for path in _ROOM.glob(f"*/{_PIPELINE}"))


def bare_name(name: str) -> str:
    """``"zoo/freedoom-depth-laplace-tiny"`` -> ``"freedoom-depth-laplace-tiny"``; other names as they are."""
    return name.removeprefix(_PREFIX)


def zoo_path(name: str) -> Path:
    """The folder of a shipped checkpoint.

    Args:
        name: Of a model of maps or an image generator, e.g. ``"freedoom-normals-tiny"`` or ``"zoo/freedoom-normals-tiny"``.

    Returns:
        A folder that ``from_pretrained`` takes.

    Raises:
        ValueError: If no checkpoint of that name is shipped; the error lists those that are.
    """
    names, name = sorted({*available(), *available_generators()}), bare_name(name)
    if name not in names:
        raise ValueError(f"no shipped checkpoint is called {name!r}{_guess(name, names)}; there is {_listing(names)}")
    return _ROOM / name


def shipped_folder(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of a shipped model of maps by its name; anything else, a folder of that name first of all, as it is."""
    text = os.fspath(name)
    return str(_ROOM / bare_name(text)) if bare_name(text) in available() and not Path(text).exists() else name


class ShippedNames:
    """Lets ``from_pretrained`` of a class of transformers take the names of shipped models of maps."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers documents it; ``"freedoom-depth-laplace-tiny"`` and other shipped names are taken, too."""
        return super().from_pretrained(shipped_folder(pretrained_model_name_or_path), *args, **kwargs)  # type: ignore[misc]


def is_export(folder: str | Path) -> bool:
    """Whether a folder is what ``noise2map export`` wrote."""
    return (Path(folder).expanduser() / EXPORT_FILE).is_file()


def resolve_model(name_or_path_or_hub_id: str | os.PathLike[str]) -> str:
    """Turn what a user calls a model into what ``from_pretrained`` takes.

    A folder comes first, then the name of a shipped model of maps, with or without ``zoo/`` before it, then a repository of the
    hub (``owner/name``), which is left for ``from_pretrained`` to find.

    Args:
        name_or_path_or_hub_id: A folder, a shipped name or a hub id.

    Returns:
        The path of a folder, or the hub id.

    Raises:
        FileNotFoundError: If the folder lacks a file that a checkpoint needs, or it is a path to nothing.
        ValueError: If it is none of the three.
    """
    wanted = os.fspath(name_or_path_or_hub_id)
    path = Path(wanted).expanduser()
    names = available()
    if path.is_dir():
        return str(_complete_folder(path))
    bare = bare_name(wanted)
    if bare in names:
        return str(_complete_folder(_ROOM / bare))
    if bare in available_generators():
        raise ValueError(
            f"model {wanted!r} is an image generator, which noise2map sample draws from; "
            f"expected a model of maps: {_listing(names)}"
        )
    if path.is_file():
        raise ValueError(f"model {wanted!r} is a file; expected the folder of a checkpoint, with {', '.join(_NEEDED)}")
    if bare != wanted:  # what is called zoo/... is shipped, and nobody's repository
        raise ValueError(f"model {wanted!r} is not shipped{_guess(bare, names)}; there is {_listing(names)}")
    if _HUB_ID.fullmatch(wanted):
        return wanted
    if os.sep in wanted or wanted.startswith((".", "~")):
        raise FileNotFoundError(f"model folder {wanted!r} does not exist")
    raise ValueError(
        f"model {wanted!r} is neither a folder, nor shipped{_guess(wanted, names)}, nor a hub id owner/name; "
        f"shipped: {_listing(names)}"
    )


def _complete_folder(path: Path) -> Path:
    if (path / _PIPELINE).is_file():
        raise ValueError(f"{str(path)!r} holds an image generator, which noise2map sample draws from; expected a model of maps")
    if is_export(path):
        try:
            kind = str(json.loads((path / EXPORT_FILE).read_text(encoding="utf-8"))["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path / EXPORT_FILE} does not say what was exported: {error!r}") from error
        graphs = [f"{name}.{'onnx' if kind == 'onnx' else 'pt2'}" for name in _GRAPHS]
        for name in (*graphs, "config.json", "preprocessor_config.json"):
            if not (path / name).is_file():
                raise FileNotFoundError(f"export folder {str(path)!r} has no {name}; expected a whole export of format {kind}")
        return path
    for name in _NEEDED:
        sharded = name == "model.safetensors" and (path / _INDEX).is_file()
        if not (path / name).is_file() and not sharded:
            raise FileNotFoundError(f"model folder {str(path)!r} has no {name}; expected {', '.join(_NEEDED)}{final_hint(path)}")
    for file in named_files(path):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}, which {path / _INDEX} names; make a copy with save_pretrained instead")
    return path


def final_hint(path: Path) -> str:
    """A hint for the run directory of a training, whose model lies one folder deeper."""
    final = path / "final"
    return f"; the run's model is in {str(final)!r}" if any((final / name).is_file() for name in ("config.json", _PIPELINE)) else ""


def _guess(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listing(names: list[str]) -> str:
    return ", ".join(names) or "none in this installation"


def label_of(name: str) -> str:
    """A short name: of a folder its last part, of the `final` of a training run the run's, else the name without `zoo/`."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return bare_name(name)
    path = path.resolve()
    return (path.parent.name if path.name == "final" else "") or path.name


def resolve_generator(name: str | os.PathLike[str]) -> str:
    """A folder of a diffusers pipeline, a shipped name (``NAME`` or ``zoo/NAME``) or a hub id -> what ``from_pretrained`` takes.

    Raises:
        FileNotFoundError: If it is none of the three, or a folder that holds no pipeline.
        ValueError: If it is a model of maps.
    """
    path, wanted = Path(name).expanduser(), os.fspath(name)
    if path.is_dir():
        if (path / _PIPELINE).is_file():
            return str(path)
        if (path / "config.json").is_file():
            raise ValueError(f"{wanted!r} holds a model of maps, which noise2map predict runs; expected an image generator")
        raise FileNotFoundError(
            f"generator folder {wanted!r} has no {_PIPELINE}; expected the folder of a diffusers pipeline{final_hint(path)}"
        )
    bare, shipped = bare_name(wanted), available_generators()
    if bare in shipped:
        return str(_ROOM / bare)
    if bare in available():
        raise ValueError(
            f"generator {wanted!r} is a model of maps, which noise2map predict runs; "
            f"expected an image generator: {_listing(shipped)}"
        )
    if bare == wanted and _HUB_ID.fullmatch(wanted):
        return wanted
    raise FileNotFoundError(
        f"generator {wanted!r} is neither a folder nor a hub id owner/name nor shipped{_guess(bare, shipped)}; "
        f"shipped: {_listing(shipped)}"
    )
