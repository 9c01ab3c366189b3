"""Atomic writes, see :mod:`noise2map.runs.files`."""

from noise2map.runs.files import encode_image, write_bytes, write_image, write_json, write_text  # noqa: F401
