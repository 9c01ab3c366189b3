"""The shipped bird's-eye-view models, on the shipped places."""

import pytest
import torch

from noise2map import zoo
from noise2map.data.freedoom import load_surround_samples
from noise2map.models import Noise2MapBevProcessor, Noise2MapForBevSegmentation

pytest.importorskip("shapely")
pytest.importorskip("cv2")


def iou_of_layers(name):
    """Layer -> IoU at probability 0.5 over the visible cells of all shipped places, and the model."""
    model = Noise2MapForBevSegmentation.from_pretrained(zoo.zoo_path(name)).eval()
    processor = Noise2MapBevProcessor.from_pretrained(zoo.zoo_path(name))
    places = load_surround_samples(sensors=tuple(model.config.sensors), sweeps=processor.sweeps)
    both, either = 0, 0
    for index in range(len(places)):
        inputs = dict(processor([places[index]]))
        labels = inputs.pop("labels")
        with torch.no_grad():
            probabilities = model(**inputs, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).probabilities
        found, visible = probabilities > 0.5, labels != 255
        both = both + (found & (labels == 1) & visible).sum((0, 2, 3))
        either = either + ((found | (labels == 1)) & visible).sum((0, 2, 3))
    names = [model.config.id2label[layer] for layer in range(len(both))]
    return dict(zip(names, (both / either.clamp_min(1)).tolist()))


@pytest.fixture(scope="module")
def camera():
    return iou_of_layers("freedoom-bev-camera-completion-tiny")


def test_the_camera_model_sees_the_floor(camera):
    assert list(camera) == ["walkable", "door", "step", "ledge", "liquid", "wall"]
    assert camera["walkable"] > 0.8


def test_the_model_with_lidar_sees_walls_that_cameras_do_not_place(camera):
    fusion = iou_of_layers("freedoom-bev-completion-tiny")
    assert fusion["walkable"] > 0.8 and fusion["wall"] > 0.35
    assert fusion["wall"] > camera["wall"] + 0.15
