"""Atomic writes, see :mod:`noise2map.runs.files`."""

from noise2map.runs.files import TEMPORARY_SUFFIX, write_file, write_text

__all__ = ["TEMPORARY_SUFFIX", "write_file", "write_text"]
