"""Maps of surface normals as files."""

from pathlib import Path

import numpy as np

from noise2map.data.images import load_image


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals ``(H, W, 3)``, zero where unknown, as bytes ``(H, W, 3)`` of an RGB image.

    A component ``n`` becomes ``128 + 127 n``, so that level and upright surfaces are exact; 128 in all three is "not known".
    """
    return np.rint(128 + 127 * np.clip(normals, -1, 1)).astype(np.uint8)


def open_normals_map(path: str | Path) -> np.ndarray:
    """Read unit normals ``(H, W, 3)`` float32 from an RGB image: x to the right, y up, z towards the viewer.

    Red, green and blue are x, y and z, 128 standing for 0 and 255 for 1, as :func:`encode_normals` writes them (files that take
    127.5 for 0 come out about a degree off at most). A pixel whose vector is far from length one (grey, black) is not known: 0.
    Images of 16 bits are read by their upper 8.

    Raises:
        OSError: If the file cannot be decoded.
        ValueError: If it is not a color image.
    """
    image = load_image(path)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"{path} has mode {image.mode}; normals need a color image (red is x, green y, blue z)")
    vectors = (np.asarray(image.convert("RGB")).astype(np.float32) - 128) / 127
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = (length > 0.8) & (length < 1.2)
    return np.where(known, vectors / np.where(known, length, 1), np.float32(0))
