"""Where an official checkpoint is: a file here, or a file of a repository on the hub."""

import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

_HUB_FILE = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*):(?P<file>[\w.-]+(?:/[\w.-]+)*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HOW = "OWNER/NAME:FILE, e.g. yfji/DDP-Weight:ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth"


def find_checkpoint(source: str | Path) -> Path:
    """The file that a user means by a path or by ``OWNER/NAME:FILE``, which is downloaded unless the hub's cache holds it.

    Args:
        source: a path, or a hub id, a colon and the name of a file in that repository.

    Returns:
        A path; of a file on this machine unless ``source`` is a path to nothing.

    Raises:
        FileNotFoundError: if the repository or the file does not exist, or cannot be reached and is not in the cache.
        ValueError: if ``source`` names a repository without a file.
    """
    text = str(source)
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


def _unreachable(repository: str, name: str) -> str:
    asked = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"{repository}:{name} is not in the cache {constants.HF_HUB_CACHE} and {asked}; get "
        f"https://huggingface.co/{repository}/resolve/main/{name} where there is a network and give the path of the file"
    )
