"""Files of a drawn image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from noise2map.geometry import known_depth, normals_from_depth, point_cloud, write_ply


def write_cloud(path: Path, image: Image.Image, depth_m: np.ndarray, intrinsics: Sequence[float], far_m: float) -> np.ndarray:
    """The point cloud of a picture as PLY, without what is as far as depth goes (sky) -> its normals ``(H, W, 3)``."""
    depth, camera = torch.from_numpy(depth_m), torch.tensor(list(intrinsics), dtype=torch.float32)
    normals = normals_from_depth(depth, camera)
    keep = known_depth(depth) & (depth < 0.98 * far_m)
    colours = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ply(path, point_cloud(depth, camera)[keep], colours[keep], normals[keep])
    return normals.numpy()
