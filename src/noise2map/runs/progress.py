"""Bars of long work: at once on a terminal, now and then in the log of a job."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30.0


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> "tqdm[Any]":
    """A tqdm bar on stderr. Where that is no terminal, it stays away for half a minute and then says something every half minute.

    Args:
        iterable: What to go through; None for a bar that is moved by hand.
        shown: Whether there is to be one at all.
        **options: Those of tqdm.

    Returns:
        The bar.
    """
    if not sys.stderr.isatty():
        options = {"delay": _LOG_SECONDS, "mininterval": _LOG_SECONDS, **options}
    return tqdm(iterable, disable=not shown, **options)
