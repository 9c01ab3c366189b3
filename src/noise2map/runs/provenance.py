"""Where a number comes from: commit, device, threads, versions, command."""

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

import noise2map


def device_name(device: torch.device) -> str:
    """A device in words, e.g. `"NVIDIA H100"` or `"cpu (x86_64)"`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def commit() -> str | None:
    """Commit of the checkout that this package is run from, with `-dirty` if its code was changed; None elsewhere."""
    package = Path(noise2map.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed package may lie inside another project's checkout
        return git("rev-parse", "--short=10", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """Provenance of a result: columns about the run that made it."""
    return {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "seed": seed,
        "noise2map": noise2map.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["noise2map", *sys.argv[1:]]),
    }
