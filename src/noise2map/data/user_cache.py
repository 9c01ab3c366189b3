"""The cache of a user, see :mod:`noise2map.runs.files`."""

from noise2map.runs.files import user_cache

__all__ = ["user_cache"]
