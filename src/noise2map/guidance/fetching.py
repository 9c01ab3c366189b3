"""A pipeline with parts of ours from the hub.

diffusers takes the class of a part from a library named in ``model_index.json`` where the pipeline lies in a folder, and looks for
code in the repository where it lies on the hub. The parts are of this library, no code need come from anywhere: the files are
brought here first.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_FILES = ("*.json", "*.safetensors", "*.md")
_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")


@functools.cache
def fetched_folder(source: str, patterns: tuple[str, ...]) -> str:
    """The folder that a source is, or that of a hub id with the files of some patterns, which diffusers does not fetch.

    Args:
        source: A folder, or ``owner/name`` on the hub.
        patterns: Of the files that are wanted; those that are not there are no error.

    Raises:
        OSError: If the hub cannot be reached or has no such repository.
    """
    return source if Path(source).is_dir() else snapshot_download(source, allow_patterns=list(patterns))


class FromHub:
    """Lets ``from_pretrained`` of a pipeline with parts of this library take ``owner/name``."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As diffusers documents it. Code in a repository is never run.

        Args:
            pretrained_model_name_or_path: a folder, or ``owner/name`` on the hub.
            **kwargs: as diffusers takes them; where to download from goes by their names there (``revision``, ``token``, ...).

        Returns:
            The pipeline.

        Raises:
            OSError: if it is not there.
        """
        source = os.fspath(pretrained_model_name_or_path)
        if not Path(source).is_dir():
            try:
                validate_repo_id(source)
            except HFValidationError:
                raise FileNotFoundError(f"there is no folder {source!r}; expected one, or owner/name on the hub") from None
            known = {name: kwargs.pop(name) for name in _DOWNLOAD if name in kwargs}
            index = json.loads(Path(hf_hub_download(source, "model_index.json", **known)).read_text(encoding="utf-8"))
            if any(isinstance(entry, list) and str(entry[0]).startswith("noise2map") for entry in index.values()):
                source = snapshot_download(source, allow_patterns=list(_FILES), **known)
            else:
                kwargs |= known
        return super().from_pretrained(source, **kwargs)  # type: ignore[misc]
