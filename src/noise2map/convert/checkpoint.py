"""Foreign checkpoints: where they are, read safely, and a report of every key."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_HUB_FILE = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*):(?P<file>[\w.-]+(?:/[\w.-]+)*)")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

_HOW = "OWNER/NAME:FILE, e.g. yfji/DDP-Weight:ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth"


def find_checkpoint(source: str | Path) -> Path:
    """The file that a user means by a path or by ``OWNER/NAME:FILE``, which is downloaded unless the hub's cache holds it.

    Args:
        source: a path, or a hub id, a colon and the name of a file in that repository.

    Returns:
        A path; of a file on this machine unless ``source`` is a path to nothing.

    Raises:
        FileNotFoundError: if the repository or the file does not exist, or cannot be reached and is not in the cache.
        ValueError: if ``source`` is a folder, or names a repository without a file.
    """
    text = str(source)
    if Path(text).is_dir():
        raise ValueError(_folder_says(Path(text)))
    if Path(text).exists():
        return Path(text)
    match = _HUB_FILE.fullmatch(text)
    if match is None:
        if _HUB_ID.fullmatch(text) and not Path(text).suffix:
            raise ValueError(f"there is no file {text!r}; of a repository on the hub, name the file as well: {_HOW}")
        return Path(text)
    repository, name = match["repository"], match["file"]
    try:
        return Path(hf_hub_download(repository, name))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"the hub has no public repository {repository!r}; expected {_HOW}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(_unreachable(repository, name)) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"repository {repository!r} on the hub has no file {name!r}") from error
    except OSError as error:  # no network, and older versions' own error for it
        raise FileNotFoundError(f"{_unreachable(repository, name)} ({str(error).splitlines()[0]})") from error


def _folder_says(folder: Path) -> str:
    """Error message for a folder where a file is expected, with the files in it."""
    if (folder / "config.json").is_file():
        return f"{folder} is a folder with a config.json: it is converted already, or a model of another library"
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
    holds = f"it holds {', '.join(found[:5])}{', ...' * (len(found) > 5)}" if found else "it holds no checkpoint"
    return f"{folder} is a folder; expected a file ({', '.join(_SUFFIXES)}); {holds}"


def _unreachable(repository: str, name: str) -> str:
    asked = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"{repository}:{name} is not in the cache {constants.HF_HUB_CACHE} and {asked}; get "
        f"https://huggingface.co/{repository}/resolve/main/{name} where there is a network and give the path of the file"
    )


@dataclass
class ConversionReport:
    """Outcome for every key of a converted checkpoint.

    Attributes:
        used: official key -> our keys that it fills.
        dropped: official key -> why it is not needed.
        settings: fields of the configuration that were read off the checkpoint's ``meta``.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: how many keys were used and dropped."""
        return f"{len(self.used)} keys used, {len(self.dropped)} knowingly dropped"


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint; see `read_content`.

    Returns:
        Key -> tensor, with the wrappers (``state_dict``, ``module.``) of training frameworks removed.
    """
    return strip_wrappers(read_content(path))


def read_content(path: str | Path) -> Any:
    """Reads all that a checkpoint holds; code inside a pickle is never run.

    Args:
        path: a ``.safetensors`` file, or a ``.pth`` / ``.pt`` / ``.bin`` pickle with tensors, numbers and text alone.

    Returns:
        What was saved: usually a dict, with the weights in it or under ``state_dict``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a checkpoint or carries code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path} cannot be read, it is damaged or of another format: {error}") from error
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {path} cannot be read as weights alone: it is damaged or carries objects other than tensors, which are "
            f"never executed ({reason}); expected a file saved from a plain state dict"
        ) from error


def _numpy_scalars() -> list[Any]:
    """Globals of a pickled numpy number: training frameworks write their best score as one, under numpy 1 or 2's name."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    types = {type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)}
    return [*((scalar, name) for name in names), np.dtype, *types]


def strip_wrappers(content: Any) -> dict[str, Tensor]:
    """Tensors of a state dict that may be nested under ``state_dict`` / ``model`` and prefixed by ``module.``.

    Raises:
        ValueError: if there is no tensor in it.
    """
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint holds a {type(content).__name__}; expected a dict of tensors")
    tensors = {
        key.removeprefix("module."): value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError("checkpoint holds no tensors; expected a state dict")
    return tensors
