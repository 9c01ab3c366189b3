"""Normals as data: files, folders, mirror, rotation, and those of Freedoom against the depth of the same frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from noise2map.data import FolderDataset
from noise2map.data.maps.normals import encode_normals, open_normals_map
from noise2map.data.transforms import HorizontalFlip, PadTo, RandomCrop, RandomResizedCrop, RandomRotation, RatioResize
from noise2map.models import Noise2MapImageProcessor


def normals(height=12, width=16, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[:2, :3] = 0
    return vectors


def angle(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def sample(height=12, width=16):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "normals": normals(height, width), "id": "a"}


def test_files_keep_directions_and_unknown_pixels(tmp_path):
    truth = normals(40, 50)
    truth[5, 5], truth[5, 6], truth[5, 7] = (0, 1, 0), (0, -1, 0), (0, 0, 1)
    Image.fromarray(encode_normals(truth)).save(tmp_path / "a.png")
    found = open_normals_map(tmp_path / "a.png")
    assert found.dtype == np.float32 and np.array_equal(found[:2, :3], truth[:2, :3])
    known = np.linalg.norm(truth, axis=-1) > 0
    assert angle(found, truth)[known].max() < 0.5
    assert np.array_equal(found[5, 5:8], truth[5, 5:8])  # level and upright surfaces are exact
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1)[known], 1, atol=1e-6)


def test_files_of_others_are_read(tmp_path):
    """diffusers' visualize_normals writes (n + 1) / 2 * 255 and others paint the unknown black."""
    truth = normals(40, 50)
    known = np.linalg.norm(truth, axis=-1) > 0
    theirs = ((truth + 1) * 0.5 * 255).astype(np.uint8)
    theirs[~known] = 0
    Image.fromarray(theirs).save(tmp_path / "a.png")
    found = open_normals_map(tmp_path / "a.png")
    assert angle(found, truth)[known].max() < 1.5 and not found[~known].any()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="mode L; normals need a color image"):
        open_normals_map(tmp_path / "grey.png")


def test_a_folder_of_normals(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    one = sample()
    one["image"].save(tmp_path / "images" / "a.png")
    Image.fromarray(encode_normals(one["normals"])).save(tmp_path / "maps" / "a.png")
    dataset = FolderDataset(tmp_path, "normals")
    found = dataset[0]
    assert dataset.id2label == {} and angle(found["normals"], one["normals"])[2:].max() < 0.5


def test_a_wall_seen_in_the_mirror():
    """A surface that faces right, on the right, faces left, on the left."""
    one = sample()
    one["normals"][:] = (0, 0, 1)
    one["normals"][5, 13] = (0.6, 0.48, 0.64)
    found = HorizontalFlip(1.0)(one, np.random.default_rng(0))["normals"]
    np.testing.assert_allclose(found[5, 2], (-0.6, 0.48, 0.64), rtol=1e-6)
    assert (found.reshape(-1, 3) == (0, 0, 1)).all(-1).sum() == 12 * 16 - 1


def test_a_floor_turns_with_the_picture():
    """Turned anticlockwise, what pointed up points to the upper left."""
    one = sample(64, 64)
    one["normals"][:] = (0, 1, 0)
    rng = np.random.default_rng(3)
    found = RandomRotation(20.0, 1.0)(one, rng)["normals"]
    degrees = np.random.default_rng(3)
    degrees.random()
    turned = np.radians(degrees.uniform(-20, 20))
    np.testing.assert_allclose(found[32, 32], (-np.sin(turned), np.cos(turned), 0), atol=1e-6)
    assert not found[0, 0].any() or not found[-1, -1].any()  # corners that come into view


@pytest.mark.parametrize("transform", [RandomCrop((8, 8)), RatioResize((24, 24)), RandomResizedCrop(), PadTo((20, 20))])
def test_other_transforms_move_vectors_as_they_are(transform):
    one = sample()
    found = transform(one, np.random.default_rng(0))
    assert found["normals"].shape == (found["image"].height, found["image"].width, 3)
    there = {tuple(vector) for vector in one["normals"].reshape(-1, 3).tolist()}
    assert {tuple(vector) for vector in found["normals"].reshape(-1, 3).tolist()} <= there


def test_the_processor_stacks_vectors_in_front():
    one = sample(40, 40)
    batch = Noise2MapImageProcessor(do_resize=False)(images=one["image"], maps=one["normals"], return_tensors="pt")
    assert torch.equal(batch["labels"][0], torch.from_numpy(one["normals"]).permute(2, 0, 1))
    smaller = Noise2MapImageProcessor(size={"height": 32, "width": 32})(images=one["image"], maps=one["normals"])["labels"][0]
    there = {tuple(vector) for vector in one["normals"].reshape(-1, 3).tolist()}
    assert {tuple(vector) for vector in smaller.transpose(1, 2, 0).reshape(-1, 3).tolist()} <= there
    with pytest.raises(ValueError, match="got depth_maps and maps; expected the maps of one task"):
        Noise2MapImageProcessor()(images=one["image"], maps=one["normals"], depth_maps=one["normals"][..., 0])
