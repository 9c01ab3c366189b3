"""The tiny ADM U-Net whose numbers were recorded, and where its samples lie. See adm_README.md."""

import gzip
import hashlib
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


@cache
def keys() -> dict:
    return json.loads(gzip.decompress((HERE / "adm_keys.json.gz").read_bytes()))


@cache
def numbers() -> dict[str, torch.Tensor]:
    return load_file(HERE / "adm_numbers.safetensors")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32))


def fill(key: str, shape: list[int]) -> np.ndarray:
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) >= 2:
        return draws / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(key.endswith(".weight")) + np.float32(0.1) * draws


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """State dict with the official key names."""
    arrays = {key: fill(key, shape) for key, (shape, _) in keys()[name]["keys"].items()}
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(key.encode())
        digest.update(arrays[key].astype("<f4").tobytes())
    assert digest.hexdigest() == keys()[name]["weights_sha256"], "the weights are not those that were recorded"
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def flags(name: str) -> dict:
    return dict(keys()[name]["flags"])


def sample(x: torch.Tensor, spread: bool = True) -> torch.Tensor:
    """256 values of a tensor, at the places that were recorded (activations: evenly strided)."""
    flat = x.detach().flatten()
    stride = flat.numel() // 256
    index = torch.arange(256) * (stride + 1) % flat.numel() if spread else torch.arange(256) * stride
    return flat[index]


X, G, NOISE, TIMESTEPS = (
    (lambda: normal(1234, 2, 3, 64, 64)),
    (lambda: normal(77, 2, 3, 64, 64)),
    (lambda: normal(4321, 2, 3, 64, 64)),
    (10, 700),
)
