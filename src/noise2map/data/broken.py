"""Unreadable samples, see :mod:`noise2map.data.subsets`."""

from noise2map.data.subsets import UNREADABLE as BROKEN
from noise2map.data.subsets import SkipUnreadable as SkipBroken

__all__ = ["BROKEN", "SkipBroken"]
