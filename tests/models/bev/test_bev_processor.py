"""The processor: pixels and matrices that belong together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bev import rig_inputs, tiny_bev

from noise2map.data.nuscenes.augmentation import evaluation_crop, transform_image
from noise2map.models import Noise2MapBevProcessor

PROCESSOR = Noise2MapBevProcessor(image_size=(32, 64), image_scale=0.5)


def sample(seed=0, size=(140, 80), **fields):
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(2)]
    rig = {key: value[0].numpy() for key, value in rig_inputs().items()}
    return {"images": images, **rig, "labels": rng.integers(0, 2, (6, 12, 16)).astype(np.uint8), "id": str(seed), **fields}


def test_view_is_the_evaluation_transform_of_the_data():
    image = sample()["images"][0]
    ours, matrix = PROCESSOR.view(image)
    theirs, expected = transform_image(image, 0.5, evaluation_crop(image.size, 0.5, (32, 64)))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs)) and np.array_equal(matrix, expected)


def test_batch_is_what_the_model_takes():
    batch = PROCESSOR([sample(0), sample(1)])
    assert batch["pixel_values"].shape == (2, 2, 3, 32, 64) and batch["labels"].dtype == torch.int64
    assert batch["image_augmentation"][0, 0].tolist()[:2] == [[0.5, 0, 0, -3], [0, 0.5, 0, -8]]
    out = tiny_bev()(**batch)
    assert torch.isfinite(out.loss)


def test_colors_are_normalised():
    white = [Image.new("RGB", (140, 80), (255, 255, 255))] * 2
    values = PROCESSOR(sample(images=white))["pixel_values"]
    expected = (1 - torch.tensor(PROCESSOR.image_mean)) / torch.tensor(PROCESSOR.image_std)
    torch.testing.assert_close(values[0, 0, :, 5, 5], expected)


def test_augmented_samples_keep_their_matrices():
    matrix = np.stack([np.eye(4, dtype=np.float32) * 2] * 2)
    turned = np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]
    batch = PROCESSOR(sample(size=(64, 32), image_augmentation=matrix, lidar_augmentation=turned))
    assert np.array_equal(batch["image_augmentation"][0], matrix) and np.array_equal(batch["lidar_augmentation"][0], turned)


def test_points_stay_a_list():
    clouds = [np.zeros((n, 5), np.float32) for n in (3, 7)]
    batch = PROCESSOR([{"points": cloud} for cloud in clouds])
    assert [cloud.shape for cloud in batch["points"]] == [(3, 5), (7, 5)] and "pixel_values" not in batch


def test_masks_at_a_threshold():
    out = tiny_bev()(**{k: v for k, v in PROCESSOR(sample()).items() if k != "labels"}, num_inference_steps=1)
    masks = PROCESSOR.post_process_bev_segmentation(out, 0.4)
    assert len(masks) == 1 and torch.equal(masks[0], out.probabilities[0] >= 0.4)


def test_saves_and_loads(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    loaded = Noise2MapBevProcessor.from_pretrained(tmp_path)
    assert (loaded.image_size, loaded.image_scale) == ([32, 64], 0.5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([sample(), {"points": np.zeros((3, 5))}], "that others lack"),
        ([{"id": "a"}], "expected images with camera matrices, points or both"),
        ([{"images": [], "id": "a"}], "sample 'a' has images but no intrinsics and no camera_to_lidar"),
        ([{**sample(), "images": sample()["images"][:1]}], "expected the same number of each"),
        ([sample(size=(60, 30), image_augmentation=np.stack([np.eye(4)] * 2))], "image is 60x30; expected 64x32"),
    ],
)
def test_impossible_samples_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(samples)


def test_samples_that_do_not_stack_are_refused():
    fewer = {name: value[:1] if name in ("images", "intrinsics", "camera_to_lidar") else value for name, value in sample().items()}
    for other, message in (
        (fewer, "samples have 2 and 1 images; expected as many of each"),
        ({**sample(), "labels": np.zeros((6, 12, 15), np.uint8)}, r"labels have shapes \(6, 12, 16\) and \(6, 12, 15\)"),
        ({**sample(), "labels": np.full((6, 12, 16), 0.9)}, "labels have type float64; expected integers"),
    ):
        with pytest.raises(ValueError, match=message):
            PROCESSOR([sample(), other])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_scal": 0.3}, "no field 'image_scal'; did you mean 'image_scale'"),
        ({"image_size": (0, -3)}, r"image_size is \(0, -3\); expected a positive height and width"),
        ({"image_std": (1, 0, 1)}, "image_std"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Noise2MapBevProcessor(**fields)


def test_each_layer_may_have_its_own_threshold():
    out = SimpleNamespace(probabilities=torch.tensor([0.1, 0.3, 0.6]).view(1, 3, 1, 1).expand(2, 3, 4, 5))
    masks = PROCESSOR.post_process_bev_segmentation(out, threshold=[0.1, 0.4, 0.5])
    assert len(masks) == 2 and masks[0].shape == (3, 4, 5) and masks[0].dtype == torch.bool
    assert [bool(layer.all()) for layer in masks[1]] == [True, False, True] and not masks[1][1].any()
    for wrong, word in (
        ([0.1, 0.2], "one for each of 3 layers"),
        ([[0.1]], "shape"),
        (1.5, "0 to 1"),
        ([0.1, -0.2, 0.3], "0 to 1"),
    ):
        with pytest.raises(ValueError, match=word):
            PROCESSOR.post_process_bev_segmentation(out, threshold=wrong)


def test_thresholds_of_layers_are_kept_and_used_where_none_is_given(tmp_path):
    fitted = [0.32, 0.04, 0.6]
    Noise2MapBevProcessor(layer_thresholds=fitted).save_pretrained(tmp_path)
    loaded = Noise2MapBevProcessor.from_pretrained(tmp_path)
    assert loaded.layer_thresholds == fitted
    out = SimpleNamespace(probabilities=torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    for mask, p in zip(loaded.post_process_bev_segmentation(out), out.probabilities.numpy()):
        assert np.array_equal(mask.numpy(), p >= np.float32(fitted)[:, None, None])
    plain, half = PROCESSOR.post_process_bev_segmentation(out), loaded.post_process_bev_segmentation(out, 0.5)
    assert all(torch.equal(a, b) and torch.equal(a, p >= 0.5) for a, b, p in zip(plain, half, out.probabilities))
    with pytest.raises(ValueError, match="layer_thresholds has shape \\(3,\\); expected one number, or one for each of 2 layers"):
        loaded.post_process_bev_segmentation(SimpleNamespace(probabilities=out.probabilities[:, :2]))


@pytest.mark.parametrize("wrong", [[], [0.2, 1.0], [0.0, 0.5], [float("nan")], ["0.5"], [None], "0.5", 0.5, [True]])
def test_impossible_thresholds_of_layers_are_refused(wrong):
    with pytest.raises(ValueError, match=r"layer_thresholds is .*; expected numbers between 0 and 1, one for each layer"):
        Noise2MapBevProcessor(layer_thresholds=wrong)
