"""Recorded losses of further published models: ConvNeXt-T on Cityscapes, Swin-T on NYU, and depth layers without time."""

import functools

import numpy as np
import pytest
import torch
from golden_reference import (
    IMAGE_SIZE,
    MAP_SIZE,
    depth_labels,
    drawn,
    image,
    numbers,
    official_weights,
    train_without_dropout,
)

from noise2map.convert import load_official_ddp

pytestmark = pytest.mark.golden
CITYSCAPES = "ddp_convnext_t_4x4_512x1024_160k_cityscapes"
NYU, KITTI = "ddp_swint_1k_w7_nyu_bs2x8_scale01", "ddp_swint_1k_w7_kitti_bs2x8_scale01"

weights_of = functools.lru_cache(maxsize=1)(official_weights)


def city_labels():
    labels = torch.from_numpy(np.random.Generator(np.random.PCG64(42)).integers(0, 19, size=(1, *IMAGE_SIZE)))
    labels[:, :20, :30] = 255
    return labels


def loss_of(weights, labels, **fields):
    model = train_without_dropout(load_official_ddp(weights, **fields))
    noise = drawn(999, 1, model.codec.channels, *MAP_SIZE)
    with torch.no_grad():
        return float(model(pixel_values=image(), labels=labels, noise=noise, timesteps=torch.tensor([0.35])).loss)


def rows(model):
    """Recorded rows of a model; the first stays among the fast tests."""
    found = numbers()["other_losses"][model]
    return [pytest.param(row, id=str(row["fields"]), marks=[pytest.mark.slow] if i else []) for i, row in enumerate(found)]


@pytest.mark.parametrize("row", rows("cityscapes_convnext_t"))
def test_cityscapes(row):
    assert loss_of(weights_of(CITYSCAPES), city_labels(), **row["fields"]) == pytest.approx(row["loss"], abs=1.5e-6)


@pytest.mark.parametrize("row", rows("nyu_swin_t"))
def test_nyu(row):
    assert loss_of(weights_of(NYU), depth_labels(), **row["fields"]) == pytest.approx(row["loss"], abs=2.5e-6)


@pytest.mark.parametrize("row", rows("kitti_swin_t_without_time"))
def test_layers_without_time(row):
    weights = {key: value for key, value in weights_of(KITTI).items() if ".time_mlp." not in key}
    assert loss_of(weights, depth_labels(), **row["fields"]) == pytest.approx(row["loss"], abs=1.5e-6)
