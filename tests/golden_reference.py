"""The recorded numbers of the public DDP implementation and the rule its weights were made by (tests/golden/README.md)."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"
IMAGE_SIZE = (152, 200)
MAP_SIZE = (38, 50)


@functools.cache
def recorded(name):
    return load_file(FOLDER / f"{name}.safetensors")


@functools.cache
def numbers():
    return json.loads((FOLDER / "ddp_numbers.json").read_text())


@functools.cache
def published_models():
    """Config name -> {"shapes": {key: shape}, "parameters": int, "parameters_without_auxiliary": int}."""
    content = json.loads((FOLDER / "ddp_keys.json").read_text())
    models = {}
    for name, model in content["models"].items():
        keys = content["names"][model["names"]]
        shapes = [tuple(content["shapes"][i]) for i in model["shapes"]]
        models[name] = {**model, "shapes": dict(zip(keys, shapes, strict=True))}
    return models


def official_weight(key, shape):
    """One tensor of the deterministic state dict."""
    if key.endswith(("num_batches_tracked", "relative_position_index")):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(n)
    elif len(shape) <= 1 and key.endswith(".weight"):
        value = 1 + 0.1 * n
    elif len(shape) >= 2:
        value = n / np.float32(np.sqrt(np.prod(shape[1:])))
    else:
        value = 0.1 * n
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def official_weights(config_name):
    return {key: official_weight(key, shape) for key, shape in published_models()[config_name]["shapes"].items()}


def drawn(seed, *shape):
    """Standard normal ``P(seed, shape)``."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32))


def image():
    return drawn(1234, 1, 3, *IMAGE_SIZE)


def class_labels():
    labels = torch.from_numpy(np.random.Generator(np.random.PCG64(42)).integers(0, 150, size=(1, *IMAGE_SIZE)))
    labels[:, :20, :30] = 255
    return labels


def depth_labels():
    depth_m = torch.from_numpy(np.random.Generator(np.random.PCG64(42)).uniform(1, 60, size=(1, *IMAGE_SIZE)).astype(np.float32))
    depth_m[:, :20, :30] = 0
    return depth_m


def train_without_dropout(model):
    """Train mode as recorded: batch norm learns, dropout and drop path are off."""
    model.train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
            module.p = 0.0
    return model


def gradient_norms(model):
    """Official key -> norm of our gradients of the parameters it became."""
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norms = {}
    for key, names in model.conversion_report.used.items():
        if all(name in gradients for name in names):
            norms[key] = float(torch.stack([gradients[name].double().norm() for name in names]).norm())
    return norms


def assert_gradient_norms(model, recorded_norms, names):
    ours = gradient_norms(model)
    assert set(ours) == set(names)
    for name, norm in zip(names, recorded_norms, strict=True):
        assert abs(ours[name] - norm) <= 1e-3 * norm, f"{name}: {ours[name]} instead of {norm}"


def first_step_tolerance(schedule, usual):
    """Tolerance of what depends on log-SNR(1): the cosine is 8e-5 there and its last bit is up to the maths library."""
    same_bits = (
        abs(float(schedule.log_snr(torch.tensor(1.0))) - float(recorded("ddp_segmentation")["sched.cosine_log_snr"][100])) < 1e-5
    )
    return usual if same_bits else 2e-2


def assert_close(actual, expected, tolerance):
    actual = actual.detach()
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance, f"largest difference {difference:.3g}, tolerance {tolerance:.3g}"
