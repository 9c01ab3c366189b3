"""Where things that are slow to find out are kept for all runs of a user."""

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """The folder of one kind of things: `$XDG_CACHE_HOME/noise2map/KIND`, usually below `~/.cache`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noise2map" / kind
