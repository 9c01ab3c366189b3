"""Reading foreign checkpoints safely, and the report of what became of every key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class ConversionReport:
    """What became of every key of a converted checkpoint.

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
    """What a pickled numpy number is made of: training frameworks write their best score as one, under numpy 1 or 2's name."""
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
    tensors = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("checkpoint holds no tensors; expected a state dict")
    return tensors
