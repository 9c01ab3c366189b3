"""A model as a user calls it -> a repository of the hub, weights and card whole."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from noise2map.hub.cards import Score, is_unwritten, model_index, plain_card, read_metadata, with_metadata
from noise2map.hub.upload import check_target, upload
from noise2map.zoo import TASK_TAGS, is_export, label_of, named_files, resolve_generator, resolve_model, task_of_folder

CARD = "README.md"

_INDEX = "model.safetensors.index.json"
_LEFT_OUT = shutil.ignore_patterns(
    "*.lock", ".*", "__pycache__",
    "checkpoint*", "optimizer.*", "scheduler.pt", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.bin",
)  # fmt: skip


def push(
    model: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    license: str | None = None,
    scores: Sequence[Score] = (),
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model of maps or an image generator, with its card.

    Args:
        model: A folder or a shipped name.
        repo_id: ``owner/name``; made where there is none.
        private: Of a new repository.
        revision: Branch.
        license: The hub's name of a licence, for a card that states none.
        scores: Go into the card as ``model-index``, in place of those that stand there.
        message: Of the commit.
        token: The user's; the one signed in with, where None.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If there is no such model here.
        ValueError: If a name is wrong.
        PermissionError: If the user may not write there.
        ConnectionError: If the hub cannot be reached.
    """
    check_target(repo_id, token)
    source = local_folder(model)
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        write_whole(source, folder)
        card = folder / CARD
        card.write_text(complete_card(folder, repo_id, license, scores), encoding="utf-8")
        message = message or f"Upload {label_of(model)}"
        return upload(folder, repo_id, private=private, revision=revision, message=message, token=token)


def local_folder(model: str) -> Path:
    """The folder of a model of maps or of a generator that is on this machine.

    Raises:
        FileNotFoundError: If it is not here.
        ValueError: If it is neither a folder nor shipped, or holds something else.
    """
    try:
        source = Path(resolve_generator(model))
    except (ValueError, FileNotFoundError):
        source = Path(resolve_model(model))
    if not source.is_dir():
        raise FileNotFoundError(
            f"there is no folder {model!r} here; expected one, or the name of a shipped model (what is on the hub is there already)"
        )
    if is_export(source):
        raise ValueError(f"{model!r} is an export, which from_pretrained does not read; expected the model that it was made of")
    if (task := task_of_folder(source)) not in TASK_TAGS:
        raise ValueError(f"{model!r} holds a model of type {task!r}; expected one of {', '.join(TASK_TAGS)}")
    return source


def write_whole(source: Path, folder: Path) -> None:
    """A copy of a checkpoint that needs no file beside it: weights that its index sends elsewhere become its own.

    Args:
        source: Of a model of maps or a pipeline; stays as it is.
        folder: New.
    """
    shutil.copytree(source, folder, ignore=_LEFT_OUT)
    files = named_files(source)
    if all(file.parent == source.resolve() for file in files):
        return
    names = json.loads((source / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    parts = {file: load_file(source / file) for file in set(names.values())}
    for path in (folder / _INDEX, *folder.glob("*.safetensors")):
        path.unlink()
    save_file({name: parts[file][name] for name, file in names.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def complete_card(folder: Path, repo_id: str, license: str | None, scores: Sequence[Score]) -> str:
    """The card of a folder with what the hub asks for; one is written where there is none.

    Args:
        folder: Of the model.
        repo_id: Where it goes.
        license: See `push`.
        scores: See `push`.
    """
    path, task = folder / CARD, task_of_folder(folder)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.strip() or is_unwritten(text):
        there = {name: value for name, value in read_metadata(text).items() if value}
        text = with_metadata(_new_card(folder, repo_id, task), there, replace=True)
    library = "diffusers" if task == "generation" else "transformers"
    known = {"library_name": library, "pipeline_tag": TASK_TAGS.get(task), "tags": ["noise2map", task], "license": license}
    text = with_metadata(text, known)
    return with_metadata(text, {"model-index": model_index(repo_id, task, scores)}, replace=True) if scores else text


def _new_card(folder: Path, repo_id: str, task: str) -> str:
    if task == "generation":
        return f"# {repo_id.rpartition('/')[2]}\n\nAn image generator; `noise2map sample --model {repo_id}` draws from it.\n"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return plain_card(repo_id, task, config["architectures"][0])
